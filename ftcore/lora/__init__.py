"""LoRA: trainable low-rank adapters (lora.py), saved in PEFT's format (adapter.py)."""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
    from ftcore.lora.adapter import load_adapter, save_adapter
    from ftcore.lora.lora import add_lora, lora_layers, merge_lora

__all__ = ["add_lora", "load_adapter", "lora_layers", "merge_lora", "save_adapter"]

__getattr__ = lazily(
    __name__,
    {
        "add_lora": "ftcore.lora.lora",
        "load_adapter": "ftcore.lora.adapter",
        "lora_layers": "ftcore.lora.lora",
        "merge_lora": "ftcore.lora.lora",
        "save_adapter": "ftcore.lora.adapter",
    },
)
