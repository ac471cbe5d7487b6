"""A decoding step as a CUDA graph: captured once, then replayed by a single call.

A step is hundreds of kernels of a few microseconds each, and Python takes longer to launch one than a GPU to
run it. A graph launches them all at once, but repeats exactly the captured kernels on the captured memory. So
no tensor of the step may grow, and no value that changes may be a Python number: the cache always shows all
of its positions, a mask selects the filled ones, and a tensor holds the position of the new token.
"""

import weakref
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ftcore.decoding.arguments import position_limit
from ftcore.models.attention import attention_mask_bias
from ftcore.models.cache import Extent, KVCache, LayerCache
from ftcore.models.t5 import relative_position_bucket

# Cache sizes are rounded up to a multiple of this, so that similar lengths share a graph.
LENGTH_MULTIPLE = 64
# Unused graphs kept for later calls. Each keeps its cache.
MAX_UNUSED = 8


class GraphStep:
    """The `fast_step` of a model on a GPU: `next_logits` for one new token per row, one graph per `Sizes`.

    Successive calls of `generate` reuse a graph. Concurrent calls of equal sizes get a graph each.
    """

    # Threads may share a model, but a process can capture only one graph at a time.
    lock = Lock()

    def __init__(self) -> None:
        self.graphs: list[Graph] = []  # least recently used first

    def __reduce__(self) -> tuple[type["GraphStep"], tuple[()]]:
        return GraphStep, ()  # captured graphs read the memory of the original model

    def __call__(
        self,
        model: Any,
        new_ids: Tensor,
        cache: KVCache,
        mask: Tensor | None,
        encoder_output: Tensor | None,
        encoder_mask: Tensor | None,
    ) -> Tensor:
        graph = next((graph for graph in self.graphs if graph.owner() is cache), None)
        if graph is None or not graph.continues(cache):
            sizes = Sizes.of(model, new_ids, cache, encoder_output, encoder_mask)
            with self.lock:
                if graph is not None:
                    graph.owner = lambda: None
                graph = self.unused_or_new(model, sizes, cache)
                graph.attach(cache, mask, encoder_mask)
        return graph.step(new_ids, cache)

    def supports(self, sources: int, rows: int) -> bool:
        """False: fewer rows would need another graph."""
        return False

    def unused_or_new(self, model: Any, sizes: "Sizes", cache: KVCache) -> "Graph":
        """An unused graph of these sizes, or a new one, moved to the end of `graphs`."""
        unused = [graph for graph in self.graphs if graph.owner() is None]
        graph = next((graph for graph in unused if graph.sizes == sizes), None)
        removed = [graph] if graph is not None else unused[: max(0, len(unused) + 1 - MAX_UNUSED)]
        self.graphs = [other for other in self.graphs if other not in removed]
        self.graphs.append(graph or Graph(model, sizes, cache))
        return self.graphs[-1]


class Sizes(NamedTuple):
    """Two calls with equal `Sizes` can share a graph."""

    weights: tuple[tuple[int, torch.dtype], ...]  # addresses: moving or converting the model changes them
    rows: int
    max_length: int
    source: torch.Size | None  # (B, S, D) of T5's encoder output
    source_is_padded: bool

    @classmethod
    def of(
        cls,
        model: Any,
        new_ids: Tensor,
        cache: KVCache,
        encoder_output: Tensor | None,
        encoder_mask: Tensor | None,
    ) -> "Sizes":
        """The sizes of a step on these ids, (B, T), rounded up so that few graphs are captured."""
        weights = tuple((weight.data_ptr(), weight.dtype) for weight in model.parameters())
        max_length = -(-cache.max_length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        max_length = min(max_length, position_limit(model) or max_length)
        source = None if encoder_output is None else encoder_output.shape
        return cls(weights, len(new_ids), max_length, source, encoder_mask is not None)


class Graph:
    """One captured step with its static input and output tensors."""

    def __init__(self, model: Any, sizes: Sizes, cache: KVCache):
        self.sizes = sizes
        device = next(model.parameters()).device
        zeros = partial(torch.zeros, dtype=torch.long, device=device)
        self.new_ids = zeros(sizes.rows, 1)
        self.position = zeros(1)  # of the new tokens
        self.visible = zeros(sizes.rows, sizes.max_length)  # 1 at positions that hold a token
        self.cache = StaticCache(cache, sizes.max_length, self.position)
        # Only the shape of T5's encoder output is read: its keys and values are in the cache.
        self.source = None if sizes.source is None else torch.empty(sizes.source, device="meta")
        self.source_mask = zeros(sizes.source[:2]) if sizes.source and sizes.source_is_padded else None
        self.owner: Callable[[], KVCache | None] = lambda: None  # the cache that uses the static tensors
        self.known_ids: Tensor | None = None  # its ids then
        self.replay, self.logits = capture(partial(self.compute, model), device)

    def compute(self, model: Any) -> Tensor:
        """The captured computation: `next_logits` (R, V) from the static tensors."""
        self.visible.index_fill_(1, self.position, 1)
        if self.source is None:
            hidden = model.last_hidden(self.new_ids, self.visible, cache=self.cache)
        else:
            hidden = self.decode_hidden(model, self.source)
        return model.lm_head(hidden)[:, -1].float()

    def decode_hidden(self, model: Any, source: Tensor) -> Tensor:
        """T5's `decode_hidden`, but with the position of the new tokens in a tensor: (R, 1, D)."""
        decoder, config = model.decoder, model.config
        hidden = decoder.embed_tokens(self.new_ids)
        mask = attention_mask_bias(self.visible, 1, self.sizes.max_length, causal=True, like=hidden)
        source_bias = attention_mask_bias(self.source_mask, 1, source.shape[1], causal=False, like=hidden)
        keys = torch.arange(self.sizes.max_length, device=hidden.device)
        distances = keys[None] - self.position  # (1, S): key minus query
        buckets = relative_position_bucket(
            distances,
            bidirectional=False,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        for layer, block in enumerate(decoder.block):
            table = block.layer[0].SelfAttention.relative_attention_bias
            if table is not None:
                position_bias = table(buckets).permute(2, 0, 1)[None].contiguous() + mask  # (R, H, 1, S)
            hidden = block(hidden, position_bias, source, source_bias, self.cache.layer(layer))
        hidden = decoder.final_layer_norm(hidden)
        return hidden * config.d_model**-0.5 if config.scale_decoder_outputs else hidden

    def attach(self, cache: KVCache, mask: Tensor | None, source_mask: Tensor | None) -> None:
        """Copy a cache and the masks into the static tensors, and make the cache use these from now on."""
        self.visible.zero_()
        self.visible[:, : cache.length] = 1 if mask is None else mask[:, : cache.length]
        if self.source_mask is not None and source_mask is not None:
            self.source_mask.copy_(source_mask)
        self.cache.attach(cache)
        self.owner, self.known_ids = weakref.ref(cache), cache.ids

    def continues(self, cache: KVCache) -> bool:
        """Whether the cache is unchanged since its last step; False in the next call of `generate`."""
        return cache.layers[0].key is self.cache.layers[0].key and cache.ids is self.known_ids

    def step(self, new_ids: Tensor, cache: KVCache) -> Tensor:
        """Feed the next tokens (R, 1) -> fp32 logits of the token after, (R, V)."""
        self.new_ids.copy_(new_ids)
        self.position.fill_(cache.length)
        self.replay()
        cache.advance(1)
        return self.logits.clone()


class StaticCache(KVCache):
    """A cache that always shows all of its positions, as if the new token were the last to fit.

    `position` (1,): where the new token's key and value are stored.
    """

    def __init__(self, like: KVCache, max_length: int, position: Tensor):
        super().__init__(max_length)
        self.extent.length = max_length - 1
        self.static_layers = [StaticLayer(layer, self.extent, position) for layer in like.layers]
        self.layers = [*self.static_layers]

    def attach(self, cache: KVCache) -> None:
        """Copy a cache's contents, and make its layers use this memory from now on."""
        for static, layer in zip(self.static_layers, cache.layers, strict=True):
            static.attach(layer, cache.length)

    def advance(self, positions: int) -> None:
        """Do nothing: `Graph.step` advances the attached cache."""


class StaticLayer(LayerCache):
    """One layer of a StaticCache, zeros at first."""

    key: Tensor  # (R, H, max_length, K)
    value: Tensor

    def __init__(self, like: Any, extent: Extent, position: Tensor):
        super().__init__(extent)
        self.position = position
        self.key, self.value = (self._buffer(old, len(old)).zero_() for old in (like.key, like.value))
        if like.cross is not None:
            key, value = like.cross
            self.cross = torch.zeros_like(key), torch.zeros_like(value)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new token's key and value, (R, H, 1, K) each; return those of all positions."""
        self.key.index_copy_(2, self.position, key)
        self.value.index_copy_(2, self.position, value)
        return self.key, self.value

    def attach(self, layer: Any, length: int) -> None:
        """Copy `length` positions of a layer, and make it use this memory instead of its own."""
        for static, old in ((self.key, layer.key), (self.value, layer.value)):
            static[:, :, :length] = old[:, :, :length]
            static[:, :, length:] = 0  # masked, but must be finite: 0 * inf = NaN
        if self.cross is not None:
            for static, old in zip(self.cross, layer.cross, strict=True):
                static.copy_(old)
        layer.key, layer.value, layer.cross = self.key, self.value, self.cross


def capture(compute: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Capture a computation as a CUDA graph: returns its replay function and its static output tensor.

    The computation runs once before, since libraries initialize at their first call.
    """
    with torch.cuda.device(device):
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            compute()
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads may use CUDA during the capture.
        with torch.cuda.graph(graph, stream=side_stream, capture_error_mode="thread_local"):
            result = compute()
        torch.cuda.current_stream().wait_stream(side_stream)
    return graph.replay, result
