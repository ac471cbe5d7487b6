"""Fault injection: run the reference with a known mistake; if its output then equals mine, that is the cause.

The run starts from the recorded input of the first bad module. Neither model is changed. A mistake is made in

    weights    parameters, replaced by functional_call
    outputs    the outputs of modules, replaced by forward hooks
    lines      the lines `x = x + inner(norm(x))` of a block, whose output a forward hook computes from them
    attention  F.scaled_dot_product_attention, intercepted: both ftcore and transformers call it
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ftcore.decoding.state import eval_mode
from ftcore.models.attention import Softmax
from ftcore.study.attention_call import AttentionCall, parse_sdpa
from ftcore.study.recording import Call, configured, dotted, first_tensor, record_calls
from ftcore.study.report import Cause, Row, broadcast, difference, display_name

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]  # module, args, kwargs, output


@dataclass(frozen=True)
class Sublayer:
    """`hidden + inner(norm(hidden))`, computed by the module `block`; all three are dotted names."""

    block: str
    norm: str
    inner: str


# hidden, norm, inner -> hidden: the line of code that adds a sublayer to the residual stream
Line = Callable[[Any, Callable[..., Any], Callable[..., Any]], Any]


def is_norm(part: nn.Module) -> bool:
    """Whether it is a LayerNorm or an RMSNorm."""
    weight, eps = getattr(part, "weight", None), epsilon(part)
    return eps is not None and isinstance(weight, Tensor) and weight.dim() == 1


def epsilon(norm: nn.Module) -> float | None:
    """The number that a norm adds to the variance."""
    return getattr(norm, "eps", getattr(norm, "variance_epsilon", None))


def pre_norm(x: Tensor, norm: Callable[[Tensor], Tensor], inner: Callable[[Tensor], Tensor]) -> Tensor:
    """A sublayer of both models: (B, T, D) -> (B, T, D)."""
    return x + inner(norm(x))


def vanishes(row: Row, after: float) -> bool:
    """Whether a mistake explains a difference: `after` it, no more is left than rounding explains."""
    return after <= row.tolerance and after < row.relative / 4


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
        """The attention calls in the first bad module; none if it computes attention in another way."""
        found: list[AttentionCall] = []

        def keep(index: int, attention: AttentionCall) -> Tensor:
            found.append(attention)
            return attention.compute()

        return found if self._is_right(attention=keep) else []

    @cached_property
    def sublayers(self) -> list[Sublayer]:
        """The pre-norm sublayers in the first bad module, in execution order.

        Empty if the module's output is not composed of them.
        """
        name = self.call.module_name
        children: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls.values():
            if call.module_name and call.module_name in self.modules and [*call.module.parameters()]:
                children[call.module_name.rpartition(".")[0]].append(call)
        found = [
            Sublayer(block, norm.module_name, inner.module_name)
            for block, calls in children.items()
            if block in self.modules and block.startswith(name)
            for norm, inner in pairwise(calls)
            if is_norm(norm.module) and not is_norm(inner.module)
        ]
        return found if self._is_right(lines=dict.fromkeys(found, pre_norm)) else []

    def _is_right(self, **change: Any) -> bool:
        """Whether the first bad module, run with a change, still has the recorded output."""
        if self.call.name not in self.observed:  # it is equal, although a part of it differs
            return False
        _, row = self.observed[self.call.name]
        value = self._values(**change).get(self.call.name)
        return self.relative_difference(value, self.call.value) <= row.tolerance

    def try_mistake(self, name: str, sentence: str, **mistake: Any) -> Iterator[Cause]:
        """Yield a Cause if the reference with a mistake (see `_run`) computes the output of mine."""
        values = self._values(**mistake)
        explained = []
        for module, (my_call, row) in self.observed.items():
            after = self.relative_difference(my_call.value, values.get(module))
            if vanishes(row, after):
                explained.append((row, after))
        if explained:
            yield self.cause(name, sentence, *explained[0], explained=len(explained))

    def _values(self, **change: Any) -> dict[str, Tensor | None]:
        """The outputs of `_run`, by call; none if the change does not fit the reference's shapes."""
        try:
            return {call.name: call.value for call in self._run(**change)}
        except RuntimeError:
            return {}

    def relative_difference(self, mine: Tensor | None, other: Tensor | None) -> float:
        """Infinite if a tensor is missing, the shapes differ or nothing is finite."""
        if mine is None or other is None:
            return math.inf
        mine, other = broadcast(mine, other), broadcast(other, mine)
        if mine.shape != other.shape:
            return math.inf
        mine, other = self.select(mine), self.select(other)
        return difference(mine, other).relative if mine.isfinite().any() else math.inf

    def cause(
        self, name: str, sentence: str, row: Row, after: float, evidence: str = "", explained: int = 1
    ) -> Cause:
        """Make a cause out of the row that it explains and the difference `after` the mistake."""
        evidence = evidence or (
            f"in {display_name(row.name)} the relative difference is {row.relative:.1e}, and {after:.1e} "
            "when the reference makes the same mistake"
        )
        return Cause(name, self.call.name, sentence, row.relative, after, evidence, explained)

    @torch.no_grad()
    def mine_without_dropout(self) -> dict[str, Tensor | None]:
        """Outputs in the first bad module of mine, in eval mode and with F.dropout disabled, by call."""
        call = self.my_call
        with eval_mode(self.mine), configured(self.mine, use_cache=False), _Intercept(WITHOUT_DROPOUT):
            calls = record_calls(call.module, call.args, call.kwargs, prefix=call.module_name)
        return {call.name: call.value for call in calls}

    @torch.no_grad()
    def _run(
        self,
        *,
        weights: dict[str, Tensor] | None = None,
        outputs: dict[str, Callable[[Tensor], Tensor]] | None = None,
        lines: dict[Sublayer, Line] | None = None,
        attention: Callable[[int, AttentionCall], Tensor] | None = None,
    ) -> list[Call]:
        """Run the reference's first bad module with a mistake; return the calls in it.

        Args:
            weights: replacements of parameters, by dotted name.
            outputs: by dotted name, a function from a module's input to its wrong output.
            lines: how sublayers are added to the residual stream; all those of a block, in execution order.
            attention: computes every attention call, given its index in the run.
        """
        call, name = self.call, self.call.module_name
        prefix = f"{name}." if name else ""
        own = {key.removeprefix(prefix): w for key, w in (weights or {}).items() if key.startswith(prefix)}
        hooks = {module: _replace_output(function) for module, function in (outputs or {}).items()}
        hooks |= self._compose(lines or {})
        # Hooks on softmax or dropout would keep ftcore's attention from calling the fused kernel.
        exclude = (Softmax, nn.Dropout) if attention is not None else ()
        with eval_mode(self.reference), configured(self.reference, use_cache=False), ExitStack() as stack:
            for module, hook in hooks.items():
                stack.enter_context(_hooked(self.modules[module], hook))
            if attention is not None:
                stack.enter_context(configured(self.reference, _attn_implementation="sdpa"))
                stack.enter_context(_Intercept({F.scaled_dot_product_attention: self._sdpa(attention)}))
            return record_calls(
                call.module, call.args, call.kwargs, prefix=name, weights=own, exclude=exclude
            )

    def _compose(self, lines: dict[Sublayer, Line]) -> dict[str, Hook]:
        """Forward hooks that compute the output of blocks from their sublayers."""
        blocks: dict[str, list[tuple[nn.Module, nn.Module, Line]]] = defaultdict(list)
        for part, line in lines.items():
            blocks[part.block].append((self.modules[part.norm], self.modules[part.inner], line))
        return {block: _compose_block(parts) for block, parts in blocks.items()}

    def _sdpa(self, attention: Callable[[int, AttentionCall], Tensor]) -> Callable[..., Tensor]:
        """A replacement of F.scaled_dot_product_attention that counts and parses its calls."""
        tables = [call for call in self.calls.values() if isinstance(call.module, nn.Embedding)]
        indices = count()
        return lambda *args, **kwargs: attention(next(indices), parse_sdpa(tables, *args, **kwargs))


def _replace_output(function: Callable[[Tensor], Tensor]) -> Hook:
    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Tensor | None:
        given = first_tensor((*args, *kwargs.values()))
        return None if given is None else function(given)

    return hook


def _compose_block(parts: list[tuple[nn.Module, nn.Module, Line]]) -> Hook:
    """A forward hook that adds sublayers, each a norm and a module, to a block's input, by their lines."""

    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        def run_inner(norm: nn.Module, inner: nn.Module, normed: Tensor) -> Any:
            """The output of `inner` for another input. The block runs, since it knows the other arguments."""
            outputs: list[Any] = []
            with _hooked(norm, lambda *_: normed), _hooked(inner, lambda *call: outputs.append(call[-1])):
                block.forward(*args, **kwargs)
            return first_tensor(outputs)

        hidden = first_tensor((*args, *kwargs.values()))
        for norm, inner, line in parts:
            hidden = line(hidden, norm.forward, partial(run_inner, norm, inner))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


@contextmanager
def _hooked(module: nn.Module, hook: Hook) -> Iterator[None]:
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Intercept(TorchFunctionMode):
    """Call other functions in place of some of torch's."""

    def __init__(self, replacements: dict[Any, Callable[..., Any]]):
        super().__init__()
        self.replacements = replacements

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.replacements.get(function, function)(*args, **(kwargs or {}))


def _sdpa_without_dropout(  # with torch's names: they may be passed by keyword
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, *args: Any, **kw: Any
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, *args, **kw)


WITHOUT_DROPOUT: dict[Any, Callable[..., Any]] = {  # neither follows eval mode
    F.dropout: lambda input, *args, **kwargs: input,
    F.scaled_dot_product_attention: _sdpa_without_dropout,
}
