"""LoRA: trainable low-rank adapters (lora.py), saved in PEFT's format (adapter.py)."""

from ftcore.lora.adapter import load_adapter, save_adapter
from ftcore.lora.lora import add_lora, lora_layers, merge_lora

__all__ = ["add_lora", "load_adapter", "lora_layers", "merge_lora", "save_adapter"]
