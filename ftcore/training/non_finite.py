"""Where a loss or gradient that is infinite or no number came from.

While all is well nothing is watched. When a step fails, its micro-batches are run once more, from the random
numbers that they had, with hooks on every module.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ftcore.checkpoints.files import write_atomically
from ftcore.data.packing import examples_of
from ftcore.data.tokenizer import Tokenizer
from ftcore.models import Model
from ftcore.models.attention import AttentionDropout, Softmax
from ftcore.training.distributed import all_gather, on_main, unsharded
from ftcore.training.loss import batch_loss
from ftcore.training.setup import Run
from ftcore.training.state import random_state, set_random_state

Batch = dict[str, Tensor]


@contextmanager
def explained(run: Run, window: Sequence[Batch]) -> Iterator[None]:
    """Around a step's forward and backward passes: says more about a FloatingPointError that leaves them.

    It names the first module whose output was not finite and the range of that module's input, and writes
    the examples of the micro-batch to the run's non_finite.json.
    """
    state = random_state()
    try:
        yield
    except FloatingPointError as error:
        set_random_state(state)
        run.optimizer.zero_grad(set_to_none=True)
        # Each process looks at its own rows, alone: with the whole model nobody waits for the others.
        found, batch = _first_non_finite(run, unsharded(run.model), window)
        rows = [row for one in ([batch] if batch else window) for row in _examples(one, run.tokenizer)]
        findings = all_gather((batch is not None, found, rows))
        guilty = [finding for finding in findings if finding[0]]
        _, found, rows = (guilty or findings)[0]
        step, path = run.progress.step + 1, run.directory.non_finite
        report = {"step": step, "error": str(error), "found": found, "examples": rows}
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        write = partial(write_atomically, path, lambda beside: beside.write_text(text, encoding="utf-8"))
        on_main(write)
        raise run.failure(f"{error} in step {step}: {found}; the batch is in {path}") from None


def _first_non_finite(run: Run, model: Model, window: Sequence[Batch]) -> tuple[str, Batch | None]:
    """What was not finite first, in words, and in which micro-batch; None if no single one is to blame."""
    found: list[str] = []
    with _watched(model, found.append):
        for batch in window:
            on_device = {name: tensor.to(run.device) for name, tensor in batch.items()}
            with run.autocast():
                loss = batch_loss(model, on_device, run.options.label_smoothing)
            if not found and not loss.total.isfinite():
                found.append("all modules gave finite outputs, but lm_head's logits no finite cross-entropy")
            if not found:
                (loss.total / max(1, loss.tokens)).backward()
                found += [
                    f"first in the gradient of {name}"
                    for name, parameter in model.named_parameters()
                    if parameter.grad is not None and not parameter.grad.isfinite().all()
                ]
            if found:
                return found[0], batch
    return "when they were run once more, its batches gave finite gradients", None


@contextmanager
def _watched(model: nn.Module, tell: Callable[[str], None]) -> Iterator[None]:
    """Tell of every module output that is not finite, then of every gradient of one, as they come."""

    def watch(name: str) -> Callable[..., None]:
        def check(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            words = f"{name}, whose input {_range(inputs[0])}"
            if not output.isfinite().all():
                spoilt = [f"{name}.{part}" for part, p in module.named_parameters() if not p.isfinite().all()]
                cause = f"; {spoilt[0]} is not finite itself" if spoilt else ""
                tell(f"first in the output of {words}{cause}")
            elif output.requires_grad:
                output.register_hook(lambda grad: check_gradient(grad, words))

        return check

    def check_gradient(grad: Tensor, words: str) -> None:
        if not grad.isfinite().all():
            tell(f"first in the gradient with respect to the output of {words}")

    # A hook on these would switch attention to its textbook lines, which draw other random numbers.
    unhooked = Softmax | AttentionDropout
    watchable = [(name, part) for name, part in model.named_modules() if not isinstance(part, unhooked)]
    handles = [part.register_forward_hook(watch(name or "the model")) for name, part in watchable]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _range(tensor: Tensor) -> str:
    """ "ranged from -3.2 to 4.1" """
    finite = tensor.detach()[tensor.isfinite()]
    if not finite.numel():
        return "was not finite anywhere"
    low, high = finite.aminmax()
    besides = "" if finite.numel() == tensor.numel() else " where it was finite"
    return f"ranged from {low.item():.4g} to {high.item():.4g}{besides}"


def _examples(batch: Batch, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Each example as the model saw it: its position in the training set, and what its ids mean."""
    return [
        {
            "index": index,
            "input": tokenizer.decode(input_ids, skip_special_tokens=False),
            "target": tokenizer.decode(labels, skip_special_tokens=False),
        }
        for index, input_ids, labels in examples_of(batch)
    ]
