"""The key-value cache: each new token costs one position instead of a pass over the whole sequence."""

from copy import copy

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every decoder layer, owned by the caller of the model.

        cache = KVCache(max_length=100)
        logits = model(prompt, cache=cache)          # fills positions 0 ... T-1
        logits = model(next_token, cache=cache)      # fills position T
        cache.crop(T)                                # forgets it

    Buffers for `max_length` positions are allocated when the first keys arrive, with their batch size, heads,
    dtype and device. For T5 the cache also holds the cross-attention keys and values, one row per source,
    shared by all beams of that source.

    `ftcore.decoding.generate` keeps here what its next call needs: the tokens of the filled positions in
    `ids`, (B, length), and T5's source in `source_ids`, (sources, S), and `encoder_output`, (sources, S, D).
    """

    def __init__(self, max_length: int):
        self.extent = Extent(max_length)
        self.layers: list[LayerCache] = []
        self.ids: Tensor | None = None
        self.source_ids: Tensor | None = None
        self.encoder_output: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of filled positions."""
        return self.extent.length

    @property
    def max_length(self) -> int:
        """Number of allocated positions."""
        return self.extent.max_length

    def layer(self, index: int) -> "LayerCache":
        """The cache of a decoder layer, made when first asked for."""
        while len(self.layers) <= index:
            self.layers.append(LayerCache(self.extent))
        return self.layers[index]

    def advance(self, positions: int) -> None:
        """Count new positions as filled; called by the model after its last layer."""
        self.extent.length += positions

    def crop(self, length: int) -> None:
        """Forget the positions from `length` on. An empty cache, after crop(0), takes any batch.

        Raises:
            ValueError: a length below 0 or above that of the cache.
        """
        if not 0 <= length <= self.length:
            raise ValueError(
                f"length is {length}, expected 0 to {self.length}, the filled positions of the cache"
            )
        self.extent.length = length
        if self.ids is not None:
            self.ids = self.ids[:, :length]
        if length == 0:
            self.layers, self.ids, self.source_ids, self.encoder_output = [], None, None, None

    def resized(self, index: Tensor) -> "KVCache":
        """A new cache, whose row i is row index[i] of this one; index is (new B), another number of rows."""
        new = copy(self)
        new.extent, new.layers = copy(self.extent), [copy(layer) for layer in self.layers]
        for layer in new.layers:
            layer.extent = new.extent
        new.reorder(index)  # allocates buffers, since the number of rows changes
        return new

    def reorder(self, index: Tensor, start: int = 0) -> None:
        """Replace row i by row index[i], as beam search needs; index is (new B) and may repeat or drop rows.

        Positions < start are identical in rows i and index[i] (common beam prefix) and are not copied, unless
        the number of rows changes. Cross-attention is left alone: all beams of a source share its row.
        """
        for layer in self.layers:
            layer.reorder(index, start)
        if self.ids is not None:
            self.ids = self.ids[index]

    def select_sources(self, index: Tensor) -> None:
        """Replace row i of what belongs to sources by row index[i], (new B), when some leave the batch."""
        if self.source_ids is not None:
            self.source_ids = self.source_ids[index]
        if self.encoder_output is not None:
            self.encoder_output = self.encoder_output[index]
        for layer in self.layers:
            if layer.cross is not None:
                key, value = layer.cross
                layer.cross = key.index_select(0, index), value.index_select(0, index)


class Extent:
    """Length of a cache, shared by the cache and its layers.

    Layers refer to this and not to the cache: a reference cycle would keep the buffers alive until Python's
    garbage collector runs.
    """

    def __init__(self, max_length: int):
        self.max_length = max_length
        self.length = 0


class LayerCache:
    """Keys and values of one decoder layer."""

    def __init__(self, extent: Extent):
        self.extent = extent
        self.key: Tensor | None = None  # (B, H, max_length, K), the first extent.length positions filled
        self.value: Tensor | None = None
        self.cross: tuple[Tensor, Tensor] | None = None  # T5's cross-attention: 2 x (sources, H, S, K)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of new positions, (B, H, T, K); return all so far, (B, H, length + T, K).

        Raises:
            ValueError: fewer than T free positions, or another batch size.
        """
        start, end = self.extent.length, self.extent.length + key.shape[2]
        if end > self.extent.max_length:
            raise ValueError(f"the cache holds {self.extent.max_length} positions, {end} are needed")
        if self.key is None or self.value is None:
            self.key, self.value = self._buffer(key, key.shape[0]), self._buffer(value, value.shape[0])
        if key.shape[0] != self.key.shape[0]:  # a single row would broadcast
            raise ValueError(
                f"the cache holds {self.key.shape[0]} rows, got {key.shape[0]}; call reorder() first"
            )
        self.key[:, :, start:end] = key
        self.value[:, :, start:end] = value
        return self.key[:, :, :end], self.value[:, :, :end]

    def reorder(self, index: Tensor, start: int) -> None:
        """Replace row i by row index[i], (new B), from position `start` on."""
        if self.key is not None and self.value is not None:
            self.key = self._reordered(self.key, index, start)
            self.value = self._reordered(self.value, index, start)

    def _reordered(self, buffer: Tensor, index: Tensor, start: int) -> Tensor:
        is_resized = len(index) != len(buffer)
        filled = slice(0 if is_resized else start, self.extent.length)
        rows = buffer[:, :, filled].index_select(0, index)
        if is_resized:
            buffer = self._buffer(buffer, len(index))
        buffer[:, :, filled] = rows
        return buffer

    def _buffer(self, like: Tensor, rows: int) -> Tensor:
        _, num_heads, _, head_width = like.shape
        # An ordinary tensor, which can be written to after `torch.inference_mode` too.
        with torch.inference_mode(False):
            return like.new_empty(rows, num_heads, self.extent.max_length, head_width)
