"""The models: torch only. Read attention.py, then gpt2.py, then t5.py."""

from ftcore.models.cache import KVCache
from ftcore.models.gpt2 import GPT2Config, GPT2LMHeadModel
from ftcore.models.t5 import MT5Config, T5Config, T5ForConditionalGeneration, UMT5Config

Model = GPT2LMHeadModel | T5ForConditionalGeneration  # the two pages; all members of both families are these

__all__ = [
    "GPT2Config",
    "GPT2LMHeadModel",
    "KVCache",
    "MT5Config",
    "Model",
    "T5Config",
    "T5ForConditionalGeneration",
    "UMT5Config",
]
