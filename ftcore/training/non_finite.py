"""Diagnosis of a loss or gradient that is NaN or infinite.

Training itself has no extra hooks. When a step fails, its micro-batches are run again from the same random
state, with hooks on every module.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ftcore.checkpoints.files import write_text
from ftcore.data.packing import examples_of
from ftcore.data.tokenizer import Tokenizer
from ftcore.models import Model
from ftcore.models.non_finite import finite_checks
from ftcore.training.distributed import all_gather, on_main, unsharded
from ftcore.training.loss import Batch
from ftcore.training.run import Run
from ftcore.training.state import random_state, set_random_state


@contextmanager
def diagnose_non_finite(run: Run, batches: Sequence[Batch]) -> Iterator[None]:
    """Around a step's forward and backward passes: add the cause to a FloatingPointError.

    The message names the first module with a non-finite output and the range of its input. The examples of
    the micro-batch are written to the run's non_finite.json.
    """
    state = random_state()
    try:
        yield
    except FloatingPointError as error:
        set_random_state(state)
        run.optimizer.zero_grad(set_to_none=True)
        # Each rank runs its own rows on the unsharded model, which needs no collectives.
        cause, batch = _first_non_finite(run, unsharded(run.model), batches)
        rows = [row for one in ([batch] if batch else batches) for row in _examples(one, run.tokenizer)]
        results = all_gather((batch is not None, cause, rows))
        _, cause, rows = max(results, key=lambda result: result[0])  # the first rank that found a cause
        step, path = run.progress.step + 1, run.directory.non_finite
        report = {"step": step, "error": str(error), "found": cause, "examples": rows}
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        on_main(lambda: write_text(path, text))
        raise run.failure(f"{error} in step {step}: {cause}; the batch is in {path}") from None


def _first_non_finite(run: Run, model: Model, batches: Sequence[Batch]) -> tuple[str, Batch | None]:
    """(cause, micro-batch); None where no single micro-batch reproduces the failure."""
    causes: list[str] = []
    with finite_checks(model, causes.append):
        for batch in batches:
            on_device = {name: tensor.to(run.device) for name, tensor in batch.items()}
            with run.autocast():
                loss = run.loss(model, on_device, run.options.label_smoothing)
            if not causes and not loss.total.isfinite():
                causes.append("all module outputs are finite, but the loss of lm_head's logits is not")
            if not causes:
                (loss.total / max(1, loss.tokens)).backward()
                causes += [
                    f"first in the gradient of {name}"
                    for name, parameter in model.named_parameters()
                    if parameter.grad is not None and not parameter.grad.isfinite().all()
                ]
            if causes:
                return causes[0], batch
    return "a second run of its batches gave finite gradients", None


def _examples(batch: Batch, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Each example with its position in the training set and its decoded tokens."""
    return [
        {
            "index": index,
            "input": tokenizer.decode(input_ids, skip_special_tokens=False),
            "target": tokenizer.decode(labels, skip_special_tokens=False),
        }
        for index, input_ids, labels in examples_of(batch)
    ]
