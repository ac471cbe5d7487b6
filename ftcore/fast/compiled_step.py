"""A decoding step compiled to machine code by AOTInductor, PyTorch's ahead-of-time compiler.

A step costs more than reading the weights: Python, and hundreds of small operations that each synchronize
threads. Compiled code has few of either. The matrix products of several rows remain those of the prepared
layers; for a single row the compiler generates them.
"""

import warnings
from functools import partial
from operator import is_not
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from torch.nn.utils.stateless import _reparametrize_module

from ftcore.decoding.arguments import position_limit
from ftcore.decoding.state import next_logits
from ftcore.fast.compiler import require_compiler
from ftcore.fast.packed import PreparedStep
from ftcore.fast.program_cache import Program, ProgramCache, step_weights
from ftcore.models import KVCache, Model

SETTINGS = {
    # A query is computed once, not again for every key.
    "realize_opcount_threshold": 8,
    # Fused with what follows them, products would need weights that are constants.
    "pattern_matcher": False,
    # Precompiled headers would be read from the compiler's folder in /tmp.
    "aot_inductor.precompile_headers": False,
    "cpp_cache_precompile_headers": False,
}


class CompiledStep(PreparedStep):
    """The `fast_step` of a model on a CPU: `next_logits` of one token per row, compiled.

    Weights are inputs of a program, so that it serves every model of the same shape. Each program serves
    every length of cache and source. There is one for a single row and one for more; T5 has two more, for
    several rows of one source (beams) and of several.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.cache = ProgramCache(model)
        self.programs: dict[str, Program] = {}
        self.latest: tuple[list[Tensor], list[Tensor]] = [], []  # matrices as arranged, all weights

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"programs": {}, "latest": ([], [])}  # neither can be copied

    def weights(self, model: Model, rows: int) -> list[Tensor]:
        """The weights that a step reads, with the matrices arranged."""
        matrices = self.arrange(rows)
        latest, weights = self.latest
        if not weights or any(map(is_not, latest, matrices)):
            weights = list(step_weights(model).values())
            if not {*map(id, matrices)} <= {*map(id, weights)}:  # another thread has rearranged them
                return self.weights(model, rows)
            self.latest = matrices, weights
        return weights

    def __call__(
        self,
        model: Any,
        new_ids: Tensor,
        cache: KVCache,
        mask: Tensor | None,
        encoder_output: Tensor | None,
        encoder_mask: Tensor | None,
    ) -> Tensor:
        rows = len(new_ids)
        weights = self.weights(model, rows)
        if mask is None:
            mask = new_ids.new_ones(rows, cache.length + 1)
        source = []
        if encoder_output is not None:
            if encoder_mask is None:
                encoder_mask = new_ids.new_ones(encoder_output.shape[:2])
            source = [encoder_output, encoder_mask]
        # A program reads memory in the order of its examples: other strides would be misread silently.
        tokens, source = ([tensor.contiguous() for tensor in group] for group in ([new_ids, mask], source))
        inputs = [weights, tokens, self_buffers(cache), source, cross_buffers(cache)]
        name = program_name(rows, len(source[0]) if source else rows)
        if name not in self.programs:
            self.programs[name] = self.cache.get(name, partial(compile_step, model, inputs))
        [logits] = self.programs[name]([tensor for group in inputs for tensor in group])
        cache.advance(1)
        return logits

    def supports(self, sources: int, rows: int) -> bool:
        """False where another program would be needed."""
        return sources > 1


def self_buffers(cache: KVCache) -> list[Any]:
    """Keys and values of all layers, (R, H, max_length, K)."""
    return [buffer for layer in cache.layers for buffer in (layer.key, layer.value)]


def cross_buffers(cache: KVCache) -> list[Any]:
    """T5's cross-attention keys and values of all layers, (B, H, S, K)."""
    return [buffer for layer in cache.layers for buffer in layer.cross or ()]


def program_name(rows: int, sources: int) -> str:
    """The name of the program that serves these numbers."""
    if rows == sources:
        return "one-row" if rows == 1 else "rows"
    return "beams-of-one-source" if sources == 1 else "beams"


class StepOfTensors(nn.Module):
    """`next_logits` as torch.export needs it: a function of tensors alone."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = [model]  # in a list, so that its weights are not constants of the program
        self.names = list(step_weights(model))

    def forward(
        self,
        weights: list[Tensor],
        tokens: list[Tensor],  # new_ids (R, 1), mask (R, T so far)
        buffers: list[Tensor],  # see self_buffers
        source: list[Tensor],  # T5: encoder_output (B, S, D), encoder_mask (B, S)
        cross: list[Tensor],  # see cross_buffers
    ) -> Tensor:
        """Returns the logits, (R, V), and writes the new keys and values to the buffers."""
        [model], (new_ids, mask) = self.model, tokens
        cache = KVCache(buffers[0].shape[2])
        cache.extent.length = mask.shape[1] - 1
        for index in range(len(buffers) // 2):
            layer, pair = cache.layer(index), slice(2 * index, 2 * index + 2)
            layer.key, layer.value = buffers[pair]
            layer.cross = (cross[pair][0], cross[pair][1]) if cross else None
        with _reparametrize_module(model, dict(zip(self.names, weights, strict=True))):
            return next_logits(model, new_ids, cache, mask, *(source or (None, None)))


def compile_step(model: Model, inputs: list[list[Tensor]], path: Path) -> None:
    """Compile `next_logits` for the sizes that `program_name` names, and write the program to `path`.

    Args:
        inputs: those of StepOfTensors, of which shapes and dtypes are read.

    Raises:
        ValueError: there is no C++ compiler.
    """
    require_compiler(torch.device("cpu"))
    from torch._inductor import aoti_compile_and_package, lowering  # takes seconds to import

    _, (new_ids, _), buffers, source, cross = inputs
    rows, sources = len(new_ids), len(source[0]) if source else len(new_ids)
    # Examples of the sizes that vary, from which the compiler chooses what is worth several threads. Equal
    # ones would be unified, and 1 would be a constant.
    limit = position_limit(model)
    length = 5 if limit is not None and limit < 101 else 101
    capacity, source_length = 127, 251
    rows_size = 6 if rows > 1 else 1
    sources_size = rows_size if sources == rows else 3 if sources > 1 else 1
    sizes: list[list[dict[int, int]]] = [
        [{}] * len(inputs[0]),
        [{0: rows_size}, {0: rows_size, 1: length}],
        [{0: rows_size, 2: capacity}] * len(buffers),
        [{0: sources_size, 1: source_length}] * len(source),
        [{0: sources_size, 2: source_length}] * len(cross),
    ]
    examples = tuple(
        [example(tensor, size) for tensor, size in zip(*groups, strict=True)]
        for groups in zip(inputs, sizes, strict=True)
    )
    varying = tuple(
        [{axis: Dim.DYNAMIC for axis, size in axes.items() if size > 1} for axes in group] for group in sizes
    )
    linear, int8_linear = torch.ops.mkldnn._linear_pointwise, torch.ops.onednn.qlinear_pointwise
    products = {linear.default: lower_linear, int8_linear.default: lower_int8_linear}
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        patch.object(functional, "scaled_dot_product_attention", attention_of_one_query),
        patch.dict(lowering.lowerings, products),
    ):
        warnings.simplefilter("ignore")  # of parts of PyTorch that PyTorch deprecates
        program = torch.export.export(StepOfTensors(model), examples, dynamic_shapes=varying)
        assert not program.state_dict and not program.constants, "weights are constants of the program"
        settings = dict(SETTINGS)  # which the compiler adds to
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def attention_of_one_query(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    _dropout: float,
    _causal: bool,
    *,
    scale: float,
) -> Tensor:
    """What `attend` calls, as operations that the compiler fuses: (B, H, 1, K) -> (B, H, 1, K).

    Normalizing the result, instead of the weights, takes one division per output.
    """
    scores = query * scale @ key.transpose(-2, -1)  # (B, H, 1, S)
    if bias is not None:
        scores = scores + bias
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights @ value / weights.sum(-1, keepdim=True)


def example(tensor: Tensor, sizes: dict[int, int]) -> Tensor:
    """A tensor without values, of other sizes along some axes. oneDNN's layouts become plain ones."""
    if not sizes and not tensor.is_mkldnn:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    shape = [sizes.get(axis, size) for axis, size in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype)


# How a program calls oneDNN's products. The compiler's own lowerings require weights that are constants.


def lower_linear(*arguments: Any) -> Any:
    """Call the product of floating-point numbers."""
    from torch._inductor import ir, mkldnn_ir

    return ir.TensorBox.create(mkldnn_ir.LinearUnary.create(*arguments))


def lower_int8_linear(
    inputs: Any, _scale: float, _zero: int, matrix: Any, scale: Any, _zeros: None, *arguments: Any
) -> Any:
    """Call the product of integers, with a scale of the inputs of 1 and zero points of 0."""
    from torch._inductor import ir, mkldnn_ir
    from torch._inductor.virtualized import V

    one: Any = V.graph.add_tensor_constant(torch.tensor(1.0))
    zero: Any = V.graph.add_tensor_constant(torch.tensor(0, dtype=torch.int32))
    product = mkldnn_ir.QLinearPointwisePT2E.create(inputs, one, zero, matrix, scale, zero, *arguments)
    return ir.TensorBox.create(product)
