"""Arrays as JSON that a page can unpack when it needs them: compressed, in base64.

The page's counterpart is `unpack` in page/recording.js.
"""

import base64
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Little-endian, as typed arrays are wherever browsers run.
_TYPES = {torch.uint8: "<u1", torch.uint16: "<u2", torch.int32: "<i4", torch.float32: "<f4"}


def packed(tensor: Tensor) -> dict[str, Any]:
    """A tensor of uint8, uint16, int32 or float32 with its dtype and shape."""
    array = tensor.cpu().contiguous().numpy().astype(_TYPES[tensor.dtype])
    data = base64.b64encode(zlib.compress(array.tobytes(), 6)).decode("ascii")
    return {"dtype": _TYPES[tensor.dtype][1:], "shape": list(tensor.shape), "data": data}


def unpacked(array: dict[str, Any]) -> Tensor:
    """What `packed` was given."""
    raw = zlib.decompress(base64.b64decode(array["data"]))
    return torch.from_numpy(np.frombuffer(raw, "<" + array["dtype"]).reshape(array["shape"]).copy())


def quantised(weights: Tensor) -> Tensor:
    """Attention weights, 0 to 1, as uint8: steps of the square root, since long texts have small weights.

    A weight w comes back within sqrt(w) / 255 + 1 / 260000: 0.5 within 0.003, 0.002 within 0.0002.
    """
    return (weights.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)


def restored(levels: Tensor) -> Tensor:
    """Attention weights out of what `quantised` made of them."""
    return (levels.float() / 255).square()


def token_ids(ids: Tensor) -> Tensor:
    """Ids in two bytes where that is enough for them."""
    return ids.to(torch.uint16 if ids.numel() == 0 or int(ids.max()) < 2**16 else torch.int32)
