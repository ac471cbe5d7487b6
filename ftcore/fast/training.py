"""A model prepared for training: faster layers on a CPU, or compiled blocks."""

import ctypes
import sys

import torch
from torch import nn

from ftcore.fast.compiler import compile_blocks, require_compiler
from ftcore.fast.layers import FastConv1D, FastDropout, FastLinear, FastT5Attention, FastT5LayerNorm
from ftcore.models import Model
from ftcore.models.gpt2 import Conv1D
from ftcore.models.t5 import T5Attention, T5LayerNorm

FAST_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: FastDropout,
    nn.Linear: FastLinear,
    Conv1D: FastConv1D,
    T5Attention: FastT5Attention,
    T5LayerNorm: FastT5LayerNorm,
}


def prepare_for_training(model: Model, *, compile: bool = False, device: torch.device | None = None) -> Model:
    """Make training faster, in place; returns the same model.

    By default linear layers, dropout, T5's norm and its self-attention get faster CPU implementations.
    Parameters, names, hooks and saved files do not change. Values and gradients are equal up to rounding;
    dropout draws other masks. Call it before anything large is allocated, and before gradient checkpointing.

    Args:
        model: GPT-2 or T5, with or without LoRA.
        compile: compile the blocks with torch.compile instead. The first step includes the compilation.
        device: where the model will be trained, if not where it is.

    Raises:
        ValueError: with `compile`, no C++ compiler for a CPU or no Triton for a GPU.
    """
    if compile:
        require_compiler(device or next(model.parameters()).device)
    tune_malloc()
    if compile:
        compile_blocks(model)
    else:
        use_fast_layers(model)
    return model


def use_fast_layers(model: Model) -> None:
    """Change the class of each layer in FAST_LAYERS."""
    for module in model.modules():
        if type(module) in FAST_LAYERS:
            module.__class__ = FAST_LAYERS[type(module)]


def tune_malloc() -> None:
    """Keep freed memory in the process, where the C library is glibc.

    Each step frees its activations and gradients and then allocates as much again. By default glibc returns
    large blocks to the kernel, which zeroes each page again: 160,000 pages per step of GPT-2 small, a tenth
    of the step's time in float32 and a third in bfloat16. Peak memory is the same, but is held to the end.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
        libc.mallopt(mmap_max, 0)  # allocate all blocks from the heap
        libc.mallopt(trim_threshold, 2**31 - 1)  # and do not return its free end
