"""Fault injection: run the reference with a known mistake; if its output then equals mine, that is the cause.

The run starts from the recorded input of the first bad module. Weights are replaced by functional_call,
outputs by forward hooks, and attention by intercepting F.scaled_dot_product_attention, which both ftcore and
transformers call. Neither model is changed.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ftcore.decoding.state import eval_mode
from ftcore.models.attention import Softmax, attend
from ftcore.models.t5 import relative_position_bias
from ftcore.study.recording import Call, dotted, first_tensor, record_calls
from ftcore.study.report import Cause, Row, broadcast, difference, display_name

VANISHES = 1 / 4  # a cause must reduce the difference below this share, and to what rounding explains


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one scaled dot-product attention, with the mask split into its parts."""

    query: Tensor  # (B, H, T, K)
    key: Tensor  # (B, H, S, K)
    value: Tensor  # (B, H, S, K)
    visible: Tensor  # (1 or B, 1 or H, T, S), True where a query attends
    position_bias: Tensor | None  # (1, H, T, S); if its table is known, also at masked positions
    table: nn.Embedding | None  # of T5's position bias
    scale: float
    masked: float = torch.finfo(torch.float32).min  # additive bias at masked positions

    def __call__(self) -> Tensor:
        bias = torch.zeros(()) if self.position_bias is None else self.position_bias
        return attend(
            self.query,
            self.key,
            self.value,
            bias=torch.where(self.visible, bias.to(self.query), self.masked),
            scale=self.scale,
            softmax=nn.Softmax(dim=-1),
            dropout=nn.Dropout(0.0),
        )

    @property
    def padding(self) -> Tensor:
        """(1 or B, 1 or H, 1, S), True for masked keys: those that the last query does not attend to."""
        return ~self.visible[:, :, -1:]

    @property
    def is_causal(self) -> bool:
        future = torch.ones_like(self.visible).triu(1 + self._cached)
        return bool((future & ~self.visible & ~self.padding).any())

    def with_causal_mask(self, ahead: int, masked: float) -> "AttentionCall":
        """A causal mask shifted by `ahead` positions; bidirectional attention is unchanged."""
        if not self.is_causal:
            return self
        visible = (~self.padding).expand_as(self.visible).tril(ahead + self._cached)
        return replace(self, visible=visible, masked=masked)

    def without_causal_mask(self) -> "AttentionCall":
        return replace(self, visible=(~self.padding).expand_as(self.visible))

    def without_padding_mask(self) -> "AttentionCall":
        visible = torch.ones_like(self.visible)
        return replace(self, visible=visible.tril(self._cached) if self.is_causal else visible)

    def with_buckets(self, max_distance: int, *, bidirectional: bool) -> "AttentionCall":
        """The position bias with the buckets of T5's encoder (bidirectional) or decoder."""
        if self.table is None:
            return self
        queries, keys = self.visible.shape[-2:]
        bias = relative_position_bias(self.table, queries, keys, max_distance, bidirectional=bidirectional)
        return replace(self, position_bias=bias)

    @property
    def _cached(self) -> int:
        """Number of keys before the first query."""
        return self.visible.shape[-1] - self.visible.shape[-2]


@dataclass
class Divergence:
    """The first bad module (see report.py) in both models, and the evidence about it."""

    mine: nn.Module
    reference: nn.Module
    my_call: Call  # of the first bad module
    call: Call
    calls: dict[str, Call]  # all of the reference
    observed: dict[str, tuple[Call, Row]]  # calls of mine that differ, up to the first bad module
    matching: set[str]  # modules of the reference with equal output
    select: Callable[[Tensor], Tensor]  # the compared tokens of a tensor

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The first bad module, all modules in it, and its parent, by dotted name."""
        name = self.call.module_name
        found = {dotted(name, part): module for part, module in self.call.module.named_modules()}
        parent = name.rpartition(".")[0]
        return found | ({parent: self.reference.get_submodule(parent)} if name else {})

    @cached_property
    def leaves(self) -> dict[str, nn.Module]:
        """The modules without children; those that match are left out."""
        return {
            name: module
            for name, module in self.modules.items()
            if name not in self.matching and not list(module.children())
        }

    @cached_property
    def attentions(self) -> list[AttentionCall]:
        """The attention calls in the first bad module."""
        found: list[AttentionCall] = []

        def keep(attention: AttentionCall) -> AttentionCall:
            found.append(attention)
            return attention

        self._run(attention=keep)
        return found

    def try_mistake(self, name: str, sentence: str, **mistake: Any) -> Iterator[Cause]:
        """Yield a Cause if the reference with a mistake (see `_run`) computes the output of mine."""
        values = {call.name: call.value for call in self._run(**mistake)}
        for module, (my_call, row) in self.observed.items():
            after = self.relative_difference(my_call.value, values.get(module))
            if after <= row.tolerance and after < row.relative * VANISHES:
                yield self.cause(name, sentence, row, after)
                return

    def relative_difference(self, mine: Tensor | None, other: Tensor | None) -> float:
        """Infinite if a tensor is missing or the shapes differ."""
        if mine is None or other is None or (mine := broadcast(mine, other)).shape != other.shape:
            return math.inf
        return difference(self.select(mine), self.select(other)).relative

    def cause(self, name: str, sentence: str, row: Row, after: float, evidence: str = "") -> Cause:
        evidence = evidence or (
            f"in {display_name(row.name)} the relative difference is {row.relative:.1e}, and {after:.1e} "
            "when the reference makes the same mistake"
        )
        return Cause(name, self.call.name, sentence, row.relative, after, evidence)

    @torch.no_grad()
    def mine_without_dropout(self) -> dict[str, Tensor | None]:
        """Outputs in the first bad module of mine, in eval mode and with F.dropout disabled, by call."""
        call = self.my_call
        # F.dropout(x, p) ignores eval mode.
        replacements: dict[Any, Callable[..., Any]] = {
            F.dropout: lambda input, *args, **kwargs: input,
            F.scaled_dot_product_attention: _sdpa_without_dropout,
        }
        with eval_mode(self.mine), _Intercept(replacements):
            calls = record_calls(call.module, call.args, call.kwargs, prefix=call.module_name)
        return {call.name: call.value for call in calls}

    @torch.no_grad()
    def _run(
        self,
        *,
        weights: dict[str, Tensor] | None = None,
        outputs: dict[str, Callable[[Tensor], Tensor]] | None = None,
        attention: Callable[[AttentionCall], AttentionCall] | None = None,
    ) -> list[Call]:
        """Run the reference's first bad module with a mistake; return the calls in it.

        Args:
            weights: replacements of parameters, by dotted name.
            outputs: by dotted name, a function from a module's input to its wrong output.
            attention: changes every attention call.
        """
        call, name = self.call, self.call.module_name
        prefix = f"{name}." if name else ""
        own = {key.removeprefix(prefix): w for key, w in (weights or {}).items() if key.startswith(prefix)}
        # Hooks on softmax or dropout would keep ftcore's attention from calling the fused kernel.
        exclude = (Softmax, nn.Dropout) if attention is not None else ()
        with eval_mode(self.reference), ExitStack() as stack:
            for leaf, function in (outputs or {}).items():
                hook = self.leaves[leaf].register_forward_hook(_replace_output(function), with_kwargs=True)
                stack.callback(hook.remove)
            if attention is not None:
                tables = [call for call in self.calls.values() if isinstance(call.module, nn.Embedding)]
                stack.enter_context(_use_sdpa(self.reference))

                def changed(*args: Any, **kwargs: Any) -> Tensor:
                    return attention(_parse_sdpa(tables, *args, **kwargs))()

                stack.enter_context(_Intercept({F.scaled_dot_product_attention: changed}))
            return record_calls(
                call.module, call.args, call.kwargs, prefix=name, weights=own, exclude=exclude
            )


def _replace_output(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Tensor | None:
        given = first_tensor((*args, *kwargs.values()))
        return None if given is None else function(given)

    return hook


class _Intercept(TorchFunctionMode):
    """Call other functions in place of some of torch's."""

    def __init__(self, replacements: dict[Any, Callable[..., Any]]):
        super().__init__()
        self.replacements = replacements

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.replacements.get(function, function)(*args, **(kwargs or {}))


def _sdpa_without_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    *args: Any,
    **kw: Any,
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, *args, **kw)


def _parse_sdpa(
    tables: list[Call],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> AttentionCall:
    """The arguments of F.scaled_dot_product_attention; `tables` are the calls of embeddings."""
    visible = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    if is_causal:
        visible = visible.tril()
    bias, table = None, None
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        unmasked = attn_mask if is_bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
        visible = visible & unmasked
        if not is_bool and attn_mask.masked_fill(~unmasked, 0.0).any():
            bias, table = _position_bias(tables, attn_mask, unmasked)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return AttentionCall(query, key, value, visible, bias, table, scale)


def _position_bias(tables: list[Call], mask: Tensor, unmasked: Tensor) -> tuple[Tensor, nn.Embedding | None]:
    """The position bias in an additive mask, and its table if one of the recorded calls produced it."""
    for call in tables:
        if call.value is not None and call.value.dim() == 3:
            bias = call.value.permute(2, 0, 1)[None]  # (T, S, H) -> (1, H, T, S)
            if bias.shape[1:] == mask.shape[1:] and torch.where(unmasked, bias == mask, True).all():
                return bias, cast(nn.Embedding, call.module)
    return mask.masked_fill(~unmasked, 0.0), None


@contextmanager
def _use_sdpa(model: nn.Module) -> Iterator[None]:
    """Configure transformers' modules to call F.scaled_dot_product_attention."""
    configs: list[Any] = [getattr(part, "config", None) for part in model.modules()]
    before = [
        (config, config._attn_implementation) for config in configs if hasattr(config, "_attn_implementation")
    ]
    for config, _ in before:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
