"""Tiny random checkpoints of both families, with byte-level tokenizers."""

import json
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel

from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.study import randomize_weights

T5_TEXT, T5_OTHER = "Ada sews.", "Bea sews."
GPT2_TEXT, GPT2_OTHER = "Ada and", "Bea and"


def save_gpt2(directory: Path, **sizes: int) -> str:
    """Every byte is a token."""
    pieces = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({piece: token for token, piece in enumerate(pieces)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    shape = {"n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2} | sizes
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, eos_token_id=256, bos_token_id=256, **shape))
    randomize_weights(model, 0)
    model.save_pretrained(directory)
    return str(directory)


def save_t5(directory: Path, **sizes: int) -> str:
    """Every byte is a token."""
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
    config = T5Config(vocab_size=384, decoder_start_token_id=0, tie_word_embeddings=False, **shape | sizes)
    model = T5ForConditionalGeneration(config)
    randomize_weights(model, 0)
    # Raise the EOS logit, or a random model would almost never end an answer.
    with torch.no_grad():
        model.lm_head.weight[1] += model.lm_head.weight.mean(0)
    model.save_pretrained(directory)
    return str(directory)
