"""The models: torch only. Read attention.py, then gpt2.py, then t5.py."""

from ftcore.models.cache import KVCache
from ftcore.models.gpt2 import GPT2Config, GPT2LMHeadModel
from ftcore.models.t5 import MT5Config, T5Config, T5ForConditionalGeneration, UMT5Config

__all__ = [
    "GPT2Config",
    "GPT2LMHeadModel",
    "KVCache",
    "MT5Config",
    "T5Config",
    "T5ForConditionalGeneration",
    "UMT5Config",
]
