"""Small random models of both families, and inputs for them."""

from typing import Any

import torch
from torch import Tensor

from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.study import randomize_weights
from tests.helpers.oracle import VOCAB, tokens

FAMILIES = ("gpt2", "t5")
GPT2 = {"n_embd": 24, "n_head": 3, "n_layer": 3}
T5 = {"d_model": 24, "d_kv": 4, "d_ff": 40, "num_heads": 3, "num_layers": 2, "num_decoder_layers": 3}


def tiny(family: str, seed: int = 0, **settings: Any) -> GPT2LMHeadModel | T5ForConditionalGeneration:
    """A random model in eval mode: three heads; three blocks, two in T5's encoder."""
    if family == "gpt2":
        ends = {"bos_token_id": 1, "eos_token_id": 1}
        config = GPT2Config(vocab_size=VOCAB, n_positions=48, **ends, **GPT2 | settings)
        return randomize_weights(GPT2LMHeadModel(config), seed).eval()
    config = T5Config(vocab_size=VOCAB, decoder_start_token_id=0, **T5 | settings)
    return randomize_weights(T5ForConditionalGeneration(config), seed).eval()


def random_inputs(family: str, seed: int = 0, rows: int = 2, length: int = 7) -> dict[str, Tensor]:
    """Random tokens (rows, length); T5's sources are longer by two."""
    ids = tokens(seed, rows, length)
    if family == "gpt2":
        return {"input_ids": ids}
    return {"input_ids": tokens(seed + 1, rows, length + 2), "decoder_input_ids": ids}


def has_no_hooks(model: torch.nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    kinds += ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return not any(getattr(module, kind) for module in model.modules() for kind in kinds)
