"""A step of decoding as a CUDA graph: recorded once, then started by a single call.

A step is hundreds of kernels of a few microseconds each, and Python takes longer to start one than a GPU to
run it. A graph starts them all at once, but can only repeat itself: the same kernels on the same memory. So
nothing in it may grow from step to step, and no number that changes may be known to Python alone. Its cache
shows all the positions there will ever be, a mask says which are in use, a tensor where the new token stands.
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

# A graph has room for a multiple of so many positions, so that texts of similar lengths can share one.
ROOM = 64
# So many graphs may wait for others of their sizes. Each keeps a cache.
WAITING = 8


class GraphStep:
    """`next_logits` for one new token of each row, with a graph for each combination of sizes.

    A graph serves one call of `generate` after another. A call that begins while another of the same sizes
    goes on gets a graph of its own.
    """

    # Threads may share a model, and a process can record one graph at a time.
    lock = Lock()

    def __init__(self) -> None:
        self.graphs: list[Graph] = []  # the one that was lent last is the last

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphStep":
        return GraphStep()  # a graph reads the memory of the model that it was recorded from

    def __call__(
        self, model: Any, new_ids: Tensor, cache: KVCache, mask: Tensor | None, encoder_output: Tensor | None
    ) -> Tensor:
        graph = next((graph for graph in self.graphs if graph.borrower() is cache), None)
        if graph is None:
            sizes = Sizes.of(model, new_ids, cache, mask, encoder_output)
            with self.lock:
                graph = self.waiting_or_new(model, sizes, cache)
                graph.take_over(cache, mask)
        return graph.step(new_ids, cache)

    def suits(self, sources: int, rows: int) -> bool:
        """Whether to go on with so few once others have ended: no, they would be recorded anew."""
        return False

    def waiting_or_new(self, model: Any, sizes: "Sizes", cache: KVCache) -> "Graph":
        """A graph of these sizes that nobody uses, now the last of all."""
        waiting = [graph for graph in self.graphs if graph.borrower() is None]
        graph = next((graph for graph in waiting if graph.sizes == sizes), None)
        leaving = [graph] if graph is not None else waiting[: max(0, len(waiting) + 1 - WAITING)]
        self.graphs = [other for other in self.graphs if other not in leaving]
        self.graphs.append(graph or Graph(model, sizes, cache))
        return self.graphs[-1]


class Sizes(NamedTuple):
    """All that two calls must have in common to share a graph of one model."""

    weights: tuple[tuple[int, torch.dtype], ...]  # where they lie: a moved or converted model is another
    rows: int
    room: int
    source: torch.Size | None  # (B, S, D) of T5's encoder output
    source_is_padded: bool

    @classmethod
    def of(
        cls,
        model: Any,
        new_ids: Tensor,
        cache: KVCache,
        mask: Tensor | None,
        encoder_output: Tensor | None,
    ) -> "Sizes":
        weights = tuple((weight.data_ptr(), weight.dtype) for weight in model.parameters())
        room = -(-cache.max_length // ROOM) * ROOM
        room = min(room, position_limit(model) or room)
        if encoder_output is None:
            return cls(weights, len(new_ids), room, None, False)
        return cls(weights, len(new_ids), room, encoder_output.shape, mask is not None)


class Graph:
    """One recorded step, and the memory that it works on. It is recorded from zeros."""

    def __init__(self, model: Any, sizes: Sizes, cache: KVCache):
        self.sizes = sizes
        device = next(model.parameters()).device
        zeros = partial(torch.zeros, dtype=torch.long, device=device)
        self.new_ids = zeros(sizes.rows, 1)
        self.position = zeros(1)  # of the new tokens
        self.visible = zeros(sizes.rows, sizes.room)  # 1 at positions that hold a token
        self.cache = WholeCache(cache, sizes.room, self.position)
        # T5's encoder output is asked for its size alone: its keys and values are in the cache.
        self.source = None if sizes.source is None else torch.empty(sizes.source, device="meta")
        self.source_mask = zeros(sizes.source[:2]) if sizes.source and sizes.source_is_padded else None
        self.borrower: Callable[[], KVCache | None] = lambda: None  # whose call it serves at present
        self.replay, self.logits = record(partial(self.compute, model), device)

    def compute(self, model: Any) -> Tensor:
        """What is recorded: `next_logits`, from tensors that stay where they are, (R, V)."""
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
        mask = attention_mask_bias(self.visible, 1, self.sizes.room, causal=True, like=hidden)
        source_bias = attention_mask_bias(self.source_mask, 1, source.shape[1], causal=False, like=hidden)
        distances = torch.arange(self.sizes.room, device=hidden.device)[None] - self.position  # (1, room)
        buckets = relative_position_bucket(
            distances,
            bidirectional=False,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        for layer, block in enumerate(decoder.block):
            table = block.layer[0].SelfAttention.relative_attention_bias
            if table is not None:
                position_bias = table(buckets).permute(2, 0, 1)[None].contiguous() + mask  # (R, H, 1, room)
            hidden = block(hidden, position_bias, source, source_bias, self.cache.layer(layer))
        hidden = decoder.final_layer_norm(hidden)
        return hidden * config.d_model**-0.5 if config.scale_decoder_outputs else hidden

    def take_over(self, cache: KVCache, mask: Tensor | None) -> None:
        """Go on from what a cache and its mask hold; the cache goes on in this memory."""
        self.visible.zero_()
        self.visible[:, : cache.length] = 1
        if mask is not None and self.source_mask is not None:
            self.source_mask.copy_(mask)
        elif mask is not None:  # GPT-2's, over all positions so far
            self.visible[:, : cache.length] = mask[:, : cache.length]
        self.cache.take_over(cache)
        self.borrower = weakref.ref(cache)

    def step(self, new_ids: Tensor, cache: KVCache) -> Tensor:
        """The next tokens (R, 1) go in, fp32 logits of the one after come out, (R, V)."""
        self.new_ids.copy_(new_ids)
        self.position.fill_(cache.length)
        self.replay()
        cache.advance(1)
        return self.logits.clone()


class WholeCache(KVCache):
    """A cache that shows all of its positions, as if the new token were the last that it has room for.

    Where the new token really goes `position` says, (1,).
    """

    def __init__(self, like: KVCache, room: int, position: Tensor):
        super().__init__(room)
        self.extent.length = room - 1
        self.whole_layers = [WholeLayer(layer, self.extent, position) for layer in like.layers]
        self.layers = [*self.whole_layers]

    def take_over(self, cache: KVCache) -> None:
        """Copy what a cache holds, and let its layers have this memory from now on."""
        for own, layer in zip(self.whole_layers, cache.layers, strict=True):
            own.take_over(layer, cache.length)

    def advance(self, positions: int) -> None:
        """It is full as ever: whoever repeats the step counts them."""


class WholeLayer(LayerCache):
    """One layer's share of a WholeCache, zeros at first."""

    key: Tensor  # (R, H, room, K)
    value: Tensor

    def __init__(self, like: Any, extent: Extent, position: Tensor):
        super().__init__(extent)
        self.position = position
        self.key, self.value = (self._buffer(old, len(old)).zero_() for old in (like.key, like.value))
        if like.cross is not None:
            key, value = like.cross
            self.cross = torch.zeros_like(key), torch.zeros_like(value)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new token's key and value, (R, H, 1, K) each; return all there will ever be."""
        self.key.index_copy_(2, self.position, key)
        self.value.index_copy_(2, self.position, value)
        return self.key, self.value

    def take_over(self, layer: Any, length: int) -> None:
        """Copy what a layer holds, `length` positions, and give it this memory instead of its own."""
        for own, old in ((self.key, layer.key), (self.value, layer.value)):
            own[:, :, :length] = old[:, :, :length]
            own[:, :, length:] = 0  # nobody looks at them, but nothing times infinity would be no number
        if self.cross is not None:
            for own, old in zip(self.cross, layer.cross, strict=True):
                own.copy_(old)
        layer.key, layer.value, layer.cross = self.key, self.value, self.cross


def record(compute: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """What repeats a computation, and the memory in which its result appears.

    It runs once before it is recorded: libraries do things at their first call that cannot be repeated.
    """
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            compute()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with what they do.
        with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
            result = compute()
        torch.cuda.current_stream().wait_stream(beside)
    return graph.replay, result
