"""Record and patch activations while a model runs.

    with record(model, "pattern.*", "resid_post.3") as acts:
        model(input_ids)
    acts["pattern.0"]  # (B, H, T, S)

    def without_head_2(weights):  # (B, H, T, S)
        weights[:, 2] = 0
        return weights

    with patch(model, "pattern.3", without_head_2):
        logits = model(input_ids)

Both register PyTorch forward hooks and remove them at the end of the block, also after an exception.
`names.py` maps names to modules; `passes.py` joins the forward passes of `generate`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ftcore.models.attention import Softmax
from ftcore.study.names import DERIVED, QKV, HookPoint, find_hook_points
from ftcore.study.passes import Pass, Passes, join
from ftcore.study.recording import first_tensor

Arguments = tuple[Any, ...]  # all arguments of a module call, positional ones first


@contextmanager
def record(model: nn.Module, *names: str, grad: bool = False) -> Iterator["Activations"]:
    """Record the named activations of every forward pass inside the block.

    A forward pass replaces the recording of the one before. Passes that continue a sequence through a
    KVCache, such as those of `generate`, are joined into the tensors of a single pass over the sequence:

    - Positions are concatenated along T. The last generated token is not among them: it was never an input.
    - Keys that a step did not have yet get weight 0 and score -inf, as under a causal mask.
    - Rows are those of the last pass. Earlier positions follow the reordering of the cache; in beam search
      the rows are the beams still running at the end.

    Attention is (B, H, T, S), `head_out` (B, H, T, D), everything else (B, T, ...). B counts the decoder's
    rows, also in T5's cross-attention, where several rows may share a source. Patched activations are
    recorded as patched, regardless of nesting.

    Args:
        model: a model of ftcore.models; any other module works with dotted names only.
        names: activations or patterns, see `names.py`; "all" for every short name.
        grad: record the tensors themselves, with `.grad` after a backward pass, instead of copies. For single
            passes.

    Yields:
        A mapping from names, short or long, to tensors.

    Raises:
        ValueError: no name, or one that matches nothing; with `grad`, an activation that is computed from
            another; during the pass, a tensor without a gradient.
    """
    points = [point for name in names for point in find_hook_points(model, name)]
    if not points:
        raise ValueError('record needs the name of an activation, such as record(model, "pattern.0")')
    passes = Passes(model)
    recordings = {point.long_name: _Recording(model, point, passes, grad) for point in points}
    with ExitStack() as hooks:
        for name, stack in passes.stacks.items():
            hooks.callback(_Hook(stack, "in", partial(passes.begin, name)).remove)
            hooks.callback(_Hook(stack, "", partial(passes.end, name)).remove)
        for recording in recordings.values():
            module = model.get_submodule(recording.point.module_name)
            side = DERIVED.get(recording.point.side, recording.point.side)
            hooks.callback(_Hook(module, side, recording.keep, records=True).remove)
        yield Activations({point.name: recordings[point.long_name] for point in points})


@contextmanager
def patch(model: nn.Module, name: str, value: Tensor | Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace an activation in every forward pass inside the block.

    Nested patches of one activation apply from the outermost to the innermost. Gradients flow through a
    function, and into a tensor that requires them.

    Args:
        model: as for `record`.
        name: of one activation, or a pattern for several; see `names.py`.
        value: a tensor of the same shape; or a function (or module) from the activation to a tensor of the
            same shape. The function receives a copy, which it may modify.

    Raises:
        ValueError: a name that matches nothing, or an activation that can only be recorded; during the pass,
            a value that is not a tensor of that shape.
    """
    points = find_hook_points(model, name)
    for point in points:
        _require_patchable(point)
    with ExitStack() as hooks:
        for point in points:
            module = model.get_submodule(point.module_name)
            side = DERIVED.get(point.side, point.side)
            hooks.callback(_Hook(module, side, partial(_replacement, point, value)).remove)
        yield


class Activations(Mapping[str, Tensor]):
    """Recorded activations by the requested names; long names are accepted in place of short ones."""

    def __init__(self, recordings: dict[str, "_Recording"]):
        self._recordings = recordings
        self._by_long_name = {recording.point.long_name: recording for recording in recordings.values()}

    def __getitem__(self, name: str) -> Tensor:
        recording = self._recordings.get(name, self._by_long_name.get(name))
        if recording is None:
            raise KeyError(f"{name} was not recorded, only {', '.join(self._recordings)}")
        if not recording.steps:
            raise KeyError(f"{name}: the model has not run that far inside the block")
        return recording.value()

    def __iter__(self) -> Iterator[str]:
        return (name for name, recording in self._recordings.items() if recording.steps)

    def __len__(self) -> int:
        return sum(1 for recording in self._recordings.values() if recording.steps)

    def __repr__(self) -> str:
        return "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.items()) or "nothing yet"


class _Recording:
    """The tensors at one hook point, in the passes of the current sequences."""

    def __init__(self, model: nn.Module, point: HookPoint, passes: Passes, grad: bool):
        module = model.get_submodule(point.module_name)
        if grad and point.side in DERIVED:
            raise ValueError(
                f"record with grad=True: {point.name} has none, it is computed for the recording; "
                f"record {HookPoint('', point.module_name, DERIVED[point.side]).long_name}"
            )
        self.point = point
        self.passes = passes
        self.grad = grad
        self.view = _view(model, point)
        self.is_per_source = point.module_name.endswith((".EncDecAttention.k", ".EncDecAttention.v"))
        self.unseen = -torch.inf if isinstance(module, Softmax) and point.side else 0.0
        stacks = [stack for stack in passes.stacks if not stack or point.module_name.startswith(f"{stack}.")]
        self.stack = stacks[0] if stacks else None
        self.steps: list[tuple[Pass | None, Tensor]] = []
        self.joined: Tensor | None = None

    def keep(self, tensor: Tensor, _: Arguments) -> None:
        current = self.passes.current
        if current is not None and self.stack is not None and self.stack not in self.passes.running:
            return  # recomputation by gradient checkpointing, or a shared module called by the other stack
        tensor = self._with_gradient(tensor) if self.grad else self._copy(tensor)
        earlier = [step for step in self.steps if current is not None and current.continues(step[0])]
        self.steps = [*earlier, (current, tensor)]
        self.joined = None

    @torch.no_grad()
    def _copy(self, tensor: Tensor) -> Tensor:
        tensor = self.view(tensor).clone()
        if self.is_per_source and self.passes.current is not None:  # one row per row of the decoder
            tensor = tensor.repeat_interleave(self.passes.current.rows // len(tensor), 0)
        return tensor

    def _with_gradient(self, tensor: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise ValueError(f"record with grad=True: {self.point.name} has none, gradients are switched off")
        if not tensor.is_floating_point():
            raise ValueError(f"record with grad=True: {self.point.name} has none, it is {tensor.dtype}")
        if not tensor.requires_grad:
            tensor.requires_grad_()  # all earlier parameters are frozen: the graph starts here
        tensor.retain_grad()
        return tensor

    def value(self) -> Tensor:
        """All steps as one tensor; the same object on every call."""
        if self.joined is None:
            joined = join(self.point.name, self.steps, self.unseen)
            # A tensor made in inference mode, as in `generate`, could not be used in autograd.
            self.joined = joined.clone() if joined.is_inference() else joined
        return self.joined


def _view(model: nn.Module, point: HookPoint) -> Callable[[Tensor], Tensor]:
    """The function from the hooked tensor to the activation; the identity unless it is derived."""
    if point.side in QKV:
        return partial(_columns, point.side)
    if point.side == "heads":
        attention: Any = model.get_submodule(point.module_name.rpartition(".")[0])
        return partial(head_outputs, model.get_submodule(point.module_name), num_heads=attention.num_heads)
    return lambda tensor: tensor


def _columns(side: str, qkv: Tensor) -> Tensor:
    return qkv.chunk(3, dim=-1)[QKV.index(side)]


def head_outputs(projection: nn.Module, z: Tensor, num_heads: int) -> Tensor:
    """Apply an output projection to each head alone, without its bias: (B, T, H * K) -> (B, H, T, D)."""
    masks = torch.eye(num_heads, dtype=z.dtype, device=z.device)
    masks = masks.repeat_interleave(z.shape[-1] // num_heads, 1)  # (H, H * K)
    alone = masks[:, None] * z[:, None]  # (B, H, T, H * K)
    # `forward` and not the module itself, whose hooks are running.
    return projection.forward(alone) - projection.forward(torch.zeros_like(alone[:, :1]))


def _require_patchable(point: HookPoint) -> None:
    """Raise ValueError for a short name that can only be recorded."""
    if point.side == "heads":
        raise ValueError(
            f"{point.name} can only be recorded, since it is computed from {point.module_name}@in: patch that"
        )
    if point.name in ("encoder.embed", "decoder.embed"):
        raise ValueError(
            f"{point.name} can only be recorded, since both stacks share this module: patch "
            + point.name.replace("embed", "resid_pre.0")
        )


def _replacement(
    point: HookPoint, value: Tensor | Callable[[Tensor], Tensor], whole: Tensor, _: Arguments
) -> Tensor:
    old = _columns(point.side, whole) if point.side in QKV else whole
    new = value if isinstance(value, Tensor) else value(old.clone())
    if not isinstance(new, Tensor):
        raise ValueError(
            f"patch of {point.name}: the function gave a {type(new).__name__}, expected a tensor"
        )
    if new.shape != old.shape:
        raise ValueError(
            f"patch of {point.name}: the new tensor has the shape {tuple(new.shape)}, expected "
            f"{tuple(old.shape)} (while generating, each step has its own: patch with a function)"
        )
    new = new.to(old, copy=True)  # in-place operations of the model must not write into the caller's tensor
    if point.side not in QKV:
        return new
    parts = list(whole.chunk(3, dim=-1))
    parts[QKV.index(point.side)] = new
    return torch.cat(parts, dim=-1)


class _Hook:
    """Forward hook that passes one input or output tensor to `act`; a returned tensor replaces it."""

    def __init__(
        self,
        module: nn.Module,
        side: str,  # see names.py
        act: Callable[[Tensor, Arguments], Tensor | None],
        *,
        records: bool = False,  # runs after all hooks that patch
    ):
        self.module = module
        self.side = side
        self.act = act
        self.records = records
        self.is_running = False
        register = module.register_forward_pre_hook if side else module.register_forward_hook
        self.handles: list[RemovableHandle] = [register(self, with_kwargs=True)]
        hooks: Any = module._forward_pre_hooks if side else module._forward_hooks
        for key, hook in list(hooks.items()):
            if isinstance(hook, _Hook) and hook.records:
                hooks.move_to_end(key)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hook":
        """In a deep copy of the model the hook is a no-op; it is removed there with the original."""
        copied = [handle for handle in self.handles if id(handle.hooks_dict_ref()) in memo]
        self.handles += [copy.deepcopy(handle, memo) for handle in copied]
        return self

    def __call__(self, module: nn.Module, args: Arguments, kwargs: dict[str, Any], *output: Any) -> Any:
        if module is not self.module:
            return None
        if self.is_running:
            raise ValueError(
                f"the function that patches a {type(module).__name__} ran it: record what it needs beforehand"
            )
        self.is_running = True
        try:
            return self._on_input(args, kwargs) if self.side else self._on_output(args, kwargs, *output)
        finally:
            self.is_running = False

    def _on_output(self, args: Arguments, kwargs: dict[str, Any], output: Any) -> Tensor | None:
        tensor = first_tensor(output)
        if tensor is None:
            raise ValueError(f"a {type(self.module).__name__} returns no tensor")
        new = self.act(tensor, (*args, *kwargs.values()))
        if new is not None and tensor is not output:
            raise ValueError(
                f"a {type(self.module).__name__} returns a {type(output).__name__}, which cannot be patched"
            )
        return new

    def _on_input(self, args: Arguments, kwargs: dict[str, Any]) -> tuple[Arguments, dict[str, Any]] | None:
        arguments: dict[Any, Any] = dict(enumerate(args)) | kwargs
        key = next((key for key, value in arguments.items() if isinstance(value, Tensor)), None)
        if key is None:
            raise ValueError(f"a {type(self.module).__name__} has no tensor among its arguments")
        new = self.act(arguments[key], tuple(arguments.values()))
        if new is None:
            return None
        if self.side == "stream":
            arguments[key].copy_(new)  # in place: the residual connection reads it too
            return None
        arguments[key] = new
        return tuple(arguments[i] for i in range(len(args))), {name: arguments[name] for name in kwargs}
