"""The cache of keys and values: what a decoder keeps so that each new token costs one position."""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every decoder layer, owned by the caller of the model.

        cache = KVCache(max_length=100)
        logits = model(prompt, cache=cache)          # fills positions 0 ... T-1
        logits = model(next_token, cache=cache)      # one more

    Buffers for `max_length` positions are allocated when the first keys arrive, since only they know the
    rows, heads, dtype and device. For T5 the cache also keeps the cross-attention's keys and values, which
    depend on the source alone: one row a source, however many beams look at it.
    """

    def __init__(self, max_length: int):
        self.extent = Extent(max_length)
        self.layers: list[LayerCache] = []

    @property
    def length(self) -> int:
        """Positions filled."""
        return self.extent.length

    @property
    def max_length(self) -> int:
        """Positions there is room for."""
        return self.extent.max_length

    def layer(self, index: int) -> "LayerCache":
        while len(self.layers) <= index:
            self.layers.append(LayerCache(self.extent))
        return self.layers[index]

    def advance(self, positions: int) -> None:
        """The model calls this once all of its layers have been through."""
        self.extent.length += positions

    def reorder(self, index: Tensor, start: int = 0) -> None:
        """Make row i what row index[i] was. Rows may repeat, vanish or grow in number (beams do all three).

        Where rows stay as many, the first `start` positions may be left alone: of those the caller knows that
        rows i and index[i] agree, as the beams of a source do in what they begin with.

        Self-attention only: the beams of one source share its cross-attention row, so nothing moves there.
        """
        for layer in self.layers:
            layer.reorder(index, start)

    def select_sources(self, index: Tensor) -> None:
        """Keep only these sources' rows of the cross-attention, when finished sources leave the batch."""
        for layer in self.layers:
            if layer.cross is not None:
                key, value = layer.cross
                layer.cross = key.index_select(0, index), value.index_select(0, index)


class Extent:
    """How long a cache is.

    Its layers hold this and not the cache: objects that hold each other keep their memory until Python looks
    for cycles, and a cache's may be most of what there is.
    """

    def __init__(self, max_length: int):
        self.max_length = max_length
        self.length = 0  # positions filled


class LayerCache:
    """One layer's share of a KVCache."""

    def __init__(self, extent: Extent):
        self.extent = extent
        self.key: Tensor | None = None  # (B, H, max_length, K), the first extent.length positions filled
        self.value: Tensor | None = None
        self.cross: tuple[Tensor, Tensor] | None = None  # (sources, H, S, K) each

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions' keys and values, (B, H, T, K); return all so far, (B, H, length + T, K).

        Raises:
            ValueError: the cache has no room for T more positions, or holds other rows.
        """
        start, end = self.extent.length, self.extent.length + key.shape[2]
        if end > self.extent.max_length:
            raise ValueError(f"the cache holds {self.extent.max_length} positions, {end} are needed")
        if self.key is None or self.value is None:
            self.key, self.value = self._buffer(key, len(key)), self._buffer(value, len(value))
        if len(key) != len(self.key):  # a single row would broadcast
            raise ValueError(f"the cache holds {len(self.key)} rows, {len(key)} came: `reorder` makes others")
        self.key[:, :, start:end] = key
        self.value[:, :, start:end] = value
        return self.key[:, :, :end], self.value[:, :, :end]

    def reorder(self, index: Tensor, start: int) -> None:
        if self.key is None or self.value is None:
            return
        self.key, self.value = (
            self._reordered(self.key, index, start),
            self._reordered(self.value, index, start),
        )

    def _reordered(self, buffer: Tensor, index: Tensor, start: int) -> Tensor:
        if len(index) != len(buffer):
            start = 0
        moved = buffer[:, :, start : self.extent.length].index_select(0, index)
        if len(index) != len(buffer):
            buffer = self._buffer(buffer, len(index))
        buffer[:, :, start : self.extent.length] = moved
        return buffer

    def _buffer(self, like: Tensor, rows: int) -> Tensor:
        _, num_heads, _, head_width = like.shape
        return torch.empty(
            rows, num_heads, self.extent.max_length, head_width, dtype=like.dtype, device=like.device
        )
