"""Tiny models with LoRA."""

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from ftcore.lora.lora import lora_layers
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, UMT5Config

VOCAB = 61
T5_SIZES = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_heads": 3, "num_layers": 2}
T5_SIZES |= {"num_decoder_layers": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0}
GPT2_SIZES = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
GPT2_SIZES |= {"bos_token_id": 1, "eos_token_id": 1}
GPT2_SIZES |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

# Targets of published adapters.
TARGETS = {
    "t5": [None, ["q", "k", "v", "o"], ["wi", "wo"], ["EncDecAttention.v"], "all-linear"],
    "t5-v1.1": [None, ["q", "v", "wi_0", "wi_1", "wo"], "all-linear"],
    "umt5": [None, ["EncDecAttention.q", "EncDecAttention.k"]],
    "gpt2": [None, ["c_attn", "c_proj", "c_fc"], ["attn.c_proj"], "all-linear"],
}
VARIANTS = list(TARGETS)
CASES = [(variant, targets) for variant, sets in TARGETS.items() for targets in sets]

cases = st.sampled_from(CASES)
ranks = st.integers(1, 9)
alphas = st.sampled_from([0.5, 1, 8, 32])
seeds = st.integers(0, 2**31)


def tiny(variant: str, seed: int = 0) -> GPT2LMHeadModel | T5ForConditionalGeneration:
    torch.manual_seed(seed)
    v1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    match variant:
        case "gpt2":
            model = GPT2LMHeadModel(GPT2Config(**GPT2_SIZES))
        case "umt5":
            model = T5ForConditionalGeneration(UMT5Config(**T5_SIZES | v1_1))
        case "t5-v1.1":
            model = T5ForConditionalGeneration(T5Config(**T5_SIZES | v1_1))
        case "t5":
            model = T5ForConditionalGeneration(T5Config(**T5_SIZES))
    for parameter in model.parameters():  # with initial weights, an update hardly changes the output
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval()


def randomize_updates(model: nn.Module, seed: int = 0) -> None:
    """Randomize B as after training: the update has 0.3 of the norm of the matrix."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        noise = torch.randn(layer.lora_B.weight.shape, generator=generator)
        change = (noise @ layer.lora_A.weight.detach().to(noise.dtype)) * layer.scaling
        noise *= 0.3 * layer.weight.detach().float().norm() / change.norm()
        layer.lora_B.weight.data.copy_(noise)


@torch.no_grad()
def logits(model: GPT2LMHeadModel | T5ForConditionalGeneration) -> Tensor:
    ids = torch.arange(2, 26).view(2, 12)
    if isinstance(model, GPT2LMHeadModel):
        return model(ids)
    return model(ids, decoder_input_ids=ids[:, :7])


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
