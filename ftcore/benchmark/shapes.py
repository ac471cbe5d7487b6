"""Published shapes: what their config.json says beside the defaults of GPT2Config and T5Config."""

from typing import Any


def _gpt2(layers: int, heads: int, width: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": layers, "n_head": heads, "n_embd": width}


def _t5(layers: int, heads: int, width: int, inner: int, kv: int = 64) -> dict[str, Any]:
    sizes = {"num_layers": layers, "num_heads": heads, "d_model": width, "d_ff": inner, "d_kv": kv}
    return {"model_type": "t5", "decoder_start_token_id": 0, **sizes}


def _v1_1(layers: int, heads: int, width: int, inner: int) -> dict[str, Any]:
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return _t5(layers, heads, width, inner) | gated


SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "t5-small": _t5(6, 8, 512, 2048),
    "t5-base": _t5(12, 12, 768, 3072),
    "t5-large": _t5(24, 16, 1024, 4096),
    "t5-3b": _t5(24, 32, 1024, 16384, kv=128),
    "flan-t5-small": _v1_1(8, 6, 512, 1024),
    "flan-t5-base": _v1_1(12, 12, 768, 2048),
    "flan-t5-large": _v1_1(24, 16, 1024, 2816),
    "flan-t5-xl": _v1_1(24, 32, 2048, 5120),
}
