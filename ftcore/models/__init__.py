"""The models, torch only. Read attention.py, then gpt2.py, then t5.py."""

from ftcore.models.cache import KVCache
from ftcore.models.config import GPT2Config, MT5Config, T5Config, UMT5Config
from ftcore.models.gpt2 import GPT2LMHeadModel
from ftcore.models.t5 import T5ForConditionalGeneration

Model = GPT2LMHeadModel | T5ForConditionalGeneration

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
