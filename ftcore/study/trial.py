"""Making a mistake in the reference for one run, to see whether it then computes what mine computes.

The run starts from the recorded input of the culprit, the smallest module that must hold the mistake. Weights
are swapped for that run, outputs are overridden by hooks, and attention is caught at the one function that
both ftcore and transformers call for it. Neither model is changed.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ftcore.models.attention import AttentionDropout, Softmax, attend
from ftcore.models.t5 import relative_position_bias
from ftcore.study.recording import Call, dotted, eval_mode, first_tensor, record_calls
from ftcore.study.report import Cause, Row, broadcast, difference, shown

VANISHES = 1 / 4  # a cause leaves less than this of the difference, and no more than rounding explains


@dataclass(frozen=True)
class Attention:
    """One call of scaled dot-product attention, taken apart into what mistakes are made with."""

    query: Tensor  # (B, H, T, K)
    key: Tensor  # (B, H, S, K)
    value: Tensor  # (B, H, S, K)
    visible: Tensor  # (1 or B, 1 or H, T, S), True where a query may look
    position_bias: Tensor | None  # (1, H, T, S), at hidden positions too where its table is known
    table: nn.Embedding | None  # what T5's position bias comes from
    scale: float
    hidden: float = torch.finfo(torch.float32).min  # added to the scores where a query may not look

    def __call__(self) -> Tensor:
        bias = torch.zeros(()) if self.position_bias is None else self.position_bias
        return attend(
            self.query,
            self.key,
            self.value,
            bias=torch.where(self.visible, bias.to(self.query), self.hidden),
            scale=self.scale,
            softmax=nn.Softmax(dim=-1),
            dropout=nn.Dropout(0.0),
        )

    @property
    def padding(self) -> Tensor:
        """(1 or B, 1 or H, 1, S), True for keys that nobody sees: the last query sees all there is."""
        return ~self.visible[:, :, -1:]

    @property
    def is_causal(self) -> bool:
        future = torch.ones_like(self.visible).triu(1 + self._past)
        return bool((future & ~self.visible & ~self.padding).any())

    def with_causal_mask(self, ahead: int, hidden: float) -> "Attention":
        """The same, but where the future was hidden a query sees as far as `ahead` positions after it."""
        if not self.is_causal:
            return self
        visible = (~self.padding).expand_as(self.visible).tril(ahead + self._past)
        return replace(self, visible=visible, hidden=hidden)

    def without_causal_mask(self) -> "Attention":
        return replace(self, visible=(~self.padding).expand_as(self.visible))

    def without_padding_mask(self) -> "Attention":
        everything = torch.ones_like(self.visible)
        return replace(self, visible=everything.tril(self._past) if self.is_causal else everything)

    def with_buckets(self, max_distance: int, *, bidirectional: bool) -> "Attention":
        if self.table is None:
            return self
        queries, keys = self.visible.shape[-2:]
        bias = relative_position_bias(self.table, queries, keys, max_distance, bidirectional=bidirectional)
        return replace(self, position_bias=bias)

    @property
    def _past(self) -> int:
        """Keys before the first query, as with a cache."""
        return self.visible.shape[-1] - self.visible.shape[-2]


@dataclass
class Suspect:
    """The smallest module that must hold the mistake, and what is known about it."""

    mine: nn.Module
    reference: nn.Module
    my_call: Call  # of the culprit
    call: Call
    calls: dict[str, Call]  # all of the reference's
    observed: dict[str, tuple[Call, Row]]  # mine's divergent modules, from the first one to the culprit
    acquitted: set[str]  # modules of the reference whose output mine has too
    counted: Callable[[Tensor], Tensor]

    @cached_property
    def leaves(self) -> dict[str, nn.Module]:
        """Modules in the culprit that hold no others, by dotted name; not those whose output is right."""
        name = self.call.module_name
        return {
            dotted(name, part): module
            for part, module in self.call.module.named_modules()
            if dotted(name, part) not in self.acquitted and not any(True for _ in module.children())
        }

    @cached_property
    def surroundings(self) -> dict[str, nn.Module]:
        """The culprit, all in it, and the module that holds it, by dotted name."""
        name = self.call.module_name
        found = {dotted(name, part): module for part, module in self.call.module.named_modules()}
        if name:
            found[name.rpartition(".")[0]] = self.reference.get_submodule(name.rpartition(".")[0])
        return found

    @cached_property
    def attentions(self) -> list[Attention]:
        """The calls of attention in the culprit."""
        seen: list[Attention] = []

        def keep(attention: Attention) -> Attention:
            seen.append(attention)
            return attention

        self._run({}, {}, keep)
        return seen

    def explains(
        self,
        name: str,
        sentence: str,
        *,
        weights: Mapping[str, Tensor] | None = None,
        outputs: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        attention: Callable[[Attention], Attention] | None = None,
    ) -> Iterator[Cause]:
        """Run the reference's culprit with this mistake in it; yield the cause if mine computes the same.

        Args:
            weights: parameters by dotted name, instead of the reference's.
            outputs: by dotted name, what a module gives for its input.
            attention: from each attention in the culprit to the wrong one.
        """
        calls = self._run(weights or {}, outputs or {}, attention)
        reached = {call.name: call.value for call in calls}
        for module, (my_call, row) in self.observed.items():
            after = self.apart(my_call.value, reached.get(module))
            if after <= row.tolerance and after < row.relative * VANISHES:
                yield self.cause(name, sentence, row, after)
                return

    def apart(self, mine: Tensor | None, other: Tensor | None) -> float:
        """The relative difference; infinite where there is nothing to compare."""
        if mine is None or other is None or (mine := broadcast(mine, other)).shape != other.shape:
            return math.inf
        return difference(self.counted(mine), self.counted(other)).relative

    def cause(self, name: str, sentence: str, row: Row, after: float, evidence: str = "") -> Cause:
        usual = (
            f"in {shown(row.name)} the relative difference is {row.relative:.1e}, and {after:.1e} when the"
        )
        evidence = evidence or f"{usual} reference makes the same mistake"
        return Cause(name, self.call.name, sentence, row.relative, after, evidence)

    @torch.no_grad()
    def mine_without_dropout(self) -> dict[str, Tensor | None]:
        """What the modules in mine's culprit give in eval mode, and with F.dropout doing nothing."""
        call = self.my_call
        with eval_mode(self.mine), _NoDropout():
            calls = record_calls(call.module, call.args, call.kwargs, prefix=call.module_name)
        return {call.name: call.value for call in calls}

    @torch.no_grad()
    def _run(
        self,
        weights: Mapping[str, Tensor],
        outputs: Mapping[str, Callable[[Tensor], Tensor]],
        attention: Callable[[Attention], Attention] | None,
    ) -> list[Call]:
        """The calls in the reference's culprit, with this mistake in it."""
        inside = dotted(self.call.module_name, "x")[:-1]
        with ExitStack() as stack:
            for name, function in outputs.items():
                hook = self.leaves[name].register_forward_hook(_giving(function), with_kwargs=True)
                stack.callback(hook.remove)
            stack.enter_context(eval_mode(self.reference))
            if attention is not None:
                tables = [call for call in self.calls.values() if isinstance(call.module, nn.Embedding)]
                stack.enter_context(_fused(self.reference))
                stack.enter_context(_Attentions(attention, tables))
            return record_calls(
                self.call.module,
                self.call.args,
                self.call.kwargs,
                prefix=self.call.module_name,
                weights={
                    name.removeprefix(inside): weight
                    for name, weight in weights.items()
                    if name.startswith(inside)
                },
                leave_out=(Softmax, AttentionDropout) if attention is not None else (),
            )


def _giving(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor | None]:
    """A forward hook that gives something else."""

    def give(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Tensor | None:
        given = first_tensor((*args, *kwargs.values()))
        return None if given is None else function(given)

    return give


class _Attentions(TorchFunctionMode):
    """Changes each call of F.scaled_dot_product_attention."""

    def __init__(self, change: Callable[[Attention], Attention], tables: list[Call]):
        super().__init__()
        self.change = change
        self.tables = tables

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        return self.change(self._taken_apart(*args, **(kwargs or {})))()

    def _taken_apart(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> Attention:
        visible = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        if is_causal:
            visible = visible.tril()
        bias, table = None, None
        if attn_mask is not None:
            is_bool = attn_mask.dtype == torch.bool
            seen = attn_mask if is_bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
            visible = visible & seen
            if not is_bool and attn_mask.masked_fill(~seen, 0.0).any():
                bias, table = self._position_bias(attn_mask, seen)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return Attention(query, key, value, visible, bias, table, scale)

    def _position_bias(self, mask: Tensor, seen: Tensor) -> tuple[Tensor, nn.Embedding | None]:
        """The position bias in a mask and its table, if that is known: then at hidden positions too."""
        for call in self.tables:
            if call.value is not None and call.value.dim() == 3:
                bias = call.value.permute(2, 0, 1)[None]  # (T, S, H) -> (1, H, T, S)
                if bias.shape[1:] == mask.shape[1:] and torch.where(seen, bias == mask, True).all():
                    return bias, cast(nn.Embedding, call.module)
        return mask.masked_fill(~seen, 0.0), None


class _NoDropout(TorchFunctionMode):
    """Switches dropout off, that of F.dropout(x, p) too, which does not know eval mode."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout:
            return first_tensor((*args, *kwargs.values()))
        if function is F.scaled_dot_product_attention:
            query, key, value, *rest = args
            options = dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False)) | kwargs
            return function(query, key, value, **options | {"dropout_p": 0.0})
        return function(*args, **kwargs)


@contextmanager
def _fused(model: nn.Module) -> Iterator[None]:
    """transformers' modules call F.scaled_dot_product_attention only where their configuration says so."""
    configs = {id(config): config for part in model.modules() if (config := getattr(part, "config", None))}
    before = [
        (config, config._attn_implementation)
        for config in configs.values()
        if hasattr(config, "_attn_implementation")
    ]
    for config, _ in before:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
