"""Inverses of `pack` and `quantize_attention`, as in page/recording.js."""

import base64
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor


def unpack(array: dict[str, Any]) -> Tensor:
    values = zlib.decompress(base64.b64decode(array["data"]))
    return torch.from_numpy(np.frombuffer(values, "<" + array["dtype"]).reshape(array["shape"]).copy())


def dequantize_attention(levels: Tensor) -> Tensor:
    return (levels.float() / 255).square()
