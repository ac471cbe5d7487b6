"""Seeing and changing activations while a model runs.

    with record(model, "pattern.*", "resid_post.3") as acts:
        model(input_ids)
    acts["pattern.0"]  # (B, H, T, S)

    def without_head_2(weights):  # (B, H, T, S)
        weights[:, 2] = 0
        return weights

    with patch(model, "pattern.3", without_head_2):
        logits = model(input_ids)

The models know nothing of this. Both are PyTorch's own hooks on modules, which are there as long as the block
lasts and gone after it, whatever happens in it. `names.py` says which module an activation belongs to,
`passes.py` makes one tensor of the many passes of `generate`.

`recording.py` has hooks as well: they list every run of every module, for comparing two models. These keep a
few activations by their names.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ftcore.models import GPT2LMHeadModel, Model
from ftcore.models.attention import Softmax
from ftcore.study.names import Place, find_places
from ftcore.study.passes import Pass, Passes, join
from ftcore.study.recording import eval_mode, first_tensor

Arguments = tuple[Any, ...]  # all that a module was called with


@contextmanager
def record(model: nn.Module, *names: str, grad: bool = False) -> Iterator["Activations"]:
    """Keep what these names mean, every time the model runs inside the block.

    A forward pass replaces what an earlier one left. The passes of one text through a KVCache, such as those
    of `generate`, become one tensor instead, as a single pass over the whole text would give it:

    - Their positions T follow one another. The last token that was generated is not among them: no pass has
      read it.
    - Keys that a pass did not have yet get the weight 0 and the score -inf, as behind a causal mask.
    - Rows are those of the last pass, each with its own history: where the cache's rows are reordered, so are
      these. In beam search they are the beams that were running at the end.

    Attention is (B, H, T, S), all else (B, T, ...). B counts the decoder's rows in T5's cross-attention too,
    where several share a source. What patches change is recorded as changed, whichever block is inside.

    Args:
        model: a model of ftcore.models; or any other module, which has no short names.
        names: of activations, or patterns of names; see `names.py`.
        grad: keep the tensors themselves, with their gradients in `.grad` after a backward pass, instead of
            copies that nothing can overwrite. For single passes.

    Yields:
        A mapping from names, short or long, to tensors.

    Raises:
        ValueError: a name that matches nothing, or no name; while running, what can have no gradient.
    """
    places = [place for name in names for place in find_places(model, name)]
    if not places:
        raise ValueError('record needs the name of an activation, such as record(model, "pattern.0")')
    passes = Passes(model)
    kept = {place.long_name: _Kept(model, place, passes, grad) for place in places}
    with ExitStack() as hooks:
        for name, stack in passes.stacks.items():
            hooks.callback(_Hook(stack, "in", partial(passes.begin, name)).remove)
        for activation in kept.values():
            module, side = model.get_submodule(activation.place.module_name), activation.place.side
            hooks.callback(_Hook(module, side, activation.keep, watches=True).remove)
        yield Activations({place.name: kept[place.long_name] for place in places})


@contextmanager
def patch(model: nn.Module, name: str, value: Tensor | Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put something else in an activation's place, every time the model runs inside the block.

    Patches of one activation apply from the outermost block to the innermost. Gradients flow through what a
    function makes of an activation, and into a tensor that requires them.

    Args:
        model: as for `record`.
        name: of one activation or, as a pattern, of several; see `names.py`.
        value: a tensor of the same shape; or a function, which may be a module, from the activation to
            another of the same shape. It is given a copy and may write into it.

    Raises:
        ValueError: a name that matches nothing; while running, a value that is no tensor of that shape.
    """
    with ExitStack() as hooks:
        for place in find_places(model, name):
            module = model.get_submodule(place.module_name)
            hooks.callback(_Hook(module, place.side, partial(_replaced, place.name, value)).remove)
        yield


class Activations(Mapping[str, Tensor]):
    """What was recorded, by the names that were asked for; long names do where short ones were used."""

    def __init__(self, kept: dict[str, "_Kept"]):
        self._kept = kept
        self._by_long_name = {activation.place.long_name: activation for activation in kept.values()}

    def __getitem__(self, name: str) -> Tensor:
        activation = self._kept.get(name, self._by_long_name.get(name))
        if activation is None:
            raise KeyError(f"{name} was not recorded, only {', '.join(self._kept)}")
        if not activation.steps:
            raise KeyError(f"{name}: the model has not run that far inside the block")
        return activation.value()

    def __iter__(self) -> Iterator[str]:
        return (name for name, activation in self._kept.items() if activation.steps)

    def __len__(self) -> int:
        return sum(1 for activation in self._kept.values() if activation.steps)

    def __repr__(self) -> str:
        return "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.items()) or "nothing yet"


class _Kept:
    """What one place gave in the passes of the text that was read last."""

    def __init__(self, model: nn.Module, place: Place, passes: Passes, grad: bool):
        module = model.get_submodule(place.module_name)
        self.place = place
        self.passes = passes
        self.grad = grad
        self.unseen = -torch.inf if isinstance(module, Softmax) and place.side else 0.0
        # A module that both stacks use, such as the embedding, counts in the stack that it was asked for.
        shared = sum(part is module for _, part in model.named_modules(remove_duplicate=False)) > 1
        homes = [stack for stack in passes.stacks if place.module_name.startswith(f"{stack}.")]
        self.home = homes[0] if shared and homes else None
        self.steps: list[tuple[Pass | None, Tensor]] = []
        self.joined: Tensor | None = None

    def keep(self, tensor: Tensor, _: Arguments) -> None:
        now = self.passes.now
        if self.home is not None and now is not None and now.text.stack != self.home:
            return
        if torch._C._current_graph_task_id() != -1:  # a backward pass: gradient checkpointing runs it again
            return
        tensor = self._with_gradient(tensor) if self.grad else tensor.detach().clone()
        earlier = [step for step in self.steps if now is not None and now.goes_on(step[0])]
        self.steps = [*earlier, (now, tensor)]
        self.joined = None

    def _with_gradient(self, tensor: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise ValueError(f"record with grad=True: {self.place.name} has none, gradients are switched off")
        if not tensor.is_floating_point():
            raise ValueError(f"record with grad=True: {self.place.name} has none, it is {tensor.dtype}")
        if not tensor.requires_grad:
            tensor.requires_grad_()  # where all before it is frozen, gradients can begin here
        tensor.retain_grad()
        return tensor

    def value(self) -> Tensor:
        """All steps as one tensor, the same one each time it is asked for."""
        if self.joined is None:
            joined = join(self.place.name, self.steps, self.unseen)
            # What was made in inference mode, as in `generate`, can otherwise take no part in training.
            self.joined = joined.clone() if joined.is_inference() else joined
        return self.joined


def _replaced(name: str, value: Tensor | Callable[[Tensor], Tensor], old: Tensor, _: Arguments) -> Tensor:
    new = value if isinstance(value, Tensor) else value(old.clone())
    if not isinstance(new, Tensor):
        raise ValueError(f"patch of {name}: the function gave a {type(new).__name__}, expected a tensor")
    if new.shape != old.shape:
        raise ValueError(
            f"patch of {name}: the new tensor has the shape {tuple(new.shape)}, expected {tuple(old.shape)} "
            "(while generating, each step has its own: patch with a function)"
        )
    return new.to(old, copy=True)  # a copy: the caller's own tensor stays as it is


class _Hook:
    """Shows `act` the tensor on one side of a module; what it gives, if anything, takes its place."""

    def __init__(
        self,
        module: nn.Module,
        side: str,  # see names.py
        act: Callable[[Tensor, Arguments], Tensor | None],
        *,
        watches: bool = False,  # then its turn comes after all hooks that change something
    ):
        self.module = module
        self.side = side
        self.act = act
        self.watches = watches
        self.is_acting = False
        register = module.register_forward_pre_hook if side else module.register_forward_hook
        self.handles: list[RemovableHandle] = [register(self, with_kwargs=True)]
        hooks: Any = module._forward_pre_hooks if side else module._forward_hooks
        for key, hook in list(hooks.items()):
            if isinstance(hook, _Hook) and hook.watches:
                hooks.move_to_end(key)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hook":
        """Copying a model copies its hooks. In a copy this one does nothing; it is removed there too."""
        copied = [handle for handle in self.handles if id(handle.hooks_dict_ref()) in memo]
        self.handles += [copy.deepcopy(handle, memo) for handle in copied]
        return self

    def __call__(self, module: nn.Module, args: Arguments, kwargs: dict[str, Any], *output: Any) -> Any:
        if module is not self.module:
            return None
        if self.is_acting:
            raise ValueError(
                f"the function that patches a {type(module).__name__} ran it: record what it needs beforehand"
            )
        self.is_acting = True
        try:
            return self._on_input(args, kwargs) if self.side else self._on_output(args, kwargs, *output)
        finally:
            self.is_acting = False

    def _on_output(self, args: Arguments, kwargs: dict[str, Any], output: Any) -> Tensor | None:
        tensor = first_tensor(output)
        if tensor is None:
            raise ValueError(f"a {type(self.module).__name__} gives no tensor")
        new = self.act(tensor, (*args, *kwargs.values()))
        if new is not None and tensor is not output:
            raise ValueError(
                f"a {type(self.module).__name__} gives a {type(output).__name__}, no tensor to patch"
            )
        return new

    def _on_input(self, args: Arguments, kwargs: dict[str, Any]) -> tuple[Arguments, dict[str, Any]] | None:
        arguments: dict[Any, Any] = dict(enumerate(args)) | kwargs
        key = next((key for key, value in arguments.items() if isinstance(value, Tensor)), None)
        if key is None:
            raise ValueError(f"a {type(self.module).__name__} is given no tensor")
        new = self.act(arguments[key], tuple(arguments.values()))
        if new is None:
            return None
        if self.side == "stream":
            arguments[key].copy_(new)  # in place, for those who read it after this module
            return None
        arguments[key] = new
        return tuple(arguments[place] for place in range(len(args))), {
            name: arguments[name] for name in kwargs
        }


@torch.no_grad()
def logit_lens(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    decoder_input_ids: Tensor | None = None,
) -> Tensor:
    """The residual stream after every block, read by the model's final norm and head.

    Args:
        model: GPT-2, or T5, whose decoder is read. It runs in eval mode and gets its mode back.
        input_ids: (B, T) GPT-2's text, or (B, S) T5's source.
        attention_mask: of input_ids, 1 for a token and 0 for padding.
        decoder_input_ids: (B, T) T5's target behind the start token.

    Returns:
        (blocks, B, T, V) logits. The last block's are the model's own, bit for bit.

    Raises:
        ValueError: decoder_input_ids for GPT-2, or none for T5.
    """
    is_gpt2 = isinstance(model, GPT2LMHeadModel)
    if is_gpt2 and decoder_input_ids is not None:
        raise ValueError("decoder_input_ids is for T5; a GPT-2 text is all in input_ids")
    target = () if is_gpt2 else (decoder_input_ids,)
    with eval_mode(model), record(model, "resid_post.*" if is_gpt2 else "decoder.resid_post.*") as acts:
        model.last_hidden(input_ids, attention_mask, *target)
        return torch.stack([_read(model, residual) for residual in acts.values()])


def _read(model: Model, residual: Tensor) -> Tensor:
    """(B, T, D) -> (B, T, V), as both models end."""
    if isinstance(model, GPT2LMHeadModel):
        return model.lm_head(model.transformer.ln_f(residual))
    hidden = model.decoder.final_layer_norm(residual)
    if model.config.scale_decoder_outputs:
        hidden = hidden * model.config.d_model**-0.5
    return model.lm_head(hidden)
