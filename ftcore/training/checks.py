"""Checks of a run on a few of its own examples: `python -m ftcore.train --check`.

Most checks compute one quantity in float64 in two ways that differ only in the order of summation. Both must
agree to FLOAT64_TOL.

Each check has a control: the same difference under a deliberate fault. If the control stays within its bound
(where no example is padded, say), passing would prove nothing, and the verdict is "could not be checked".
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import pairwise, zip_longest
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from ftcore.data import DataLoader, ExampleDataset
from ftcore.data.tokenizer import IGNORED_LABEL
from ftcore.decoding import generate
from ftcore.decoding.text import padded, up_to_end
from ftcore.models import KVCache, Model, T5ForConditionalGeneration
from ftcore.training.distributed import BatchLoss
from ftcore.training.loss import Batch, batch_loss
from ftcore.training.optim import make_optimizer
from ftcore.training.run import Progress, Run
from ftcore.training.run_directory import RunDirectory
from ftcore.training.scoring import plain_search
from ftcore.training.setup import make_loader, set_dropout

HOLDS, FAILS, NOT_CHECKED = "holds", "FAILS", "could not be checked"

FLOAT64_TOL = math.sqrt(torch.finfo(torch.float64).eps)  # 1.5e-8: half of the digits are left for rounding

ROWS, SPLIT, TAIL = 8, 4, 3  # examples per step, its micro-batches, examples of the epoch's last step
OVERFIT_LOSS = 0.1  # nats per token, a probability of 90%; times the initial loss where that is below 1
MAX_STEPS, PATIENCE = 400, 20  # of overfitting: steps in all, and between changes of the learning rate
CACHED_TOKENS = 32  # fed to the cache one at a time


class Measurement(NamedTuple):
    """A measured number and the largest one that passes."""

    name: str
    value: float
    bound: float = FLOAT64_TOL

    @property
    def is_within(self) -> bool:
        """Whether the value passes; NaN does not."""
        return self.value <= self.bound


@dataclass(frozen=True)
class Result:
    """The measurements of a check, and that of its control."""

    description: str  # what was compared, or why nothing could be
    measurements: Sequence[Measurement] = ()
    control: Measurement | None = None  # must exceed its bound

    @property
    def verdict(self) -> str:
        """HOLDS, FAILS or NOT_CHECKED."""
        if not all(measurement.is_within for measurement in self.measurements):
            return FAILS
        return NOT_CHECKED if self.control is None or self.control.is_within else HOLDS

    def __str__(self) -> str:
        rows = [(measurement, "at most", measurement.is_within) for measurement in self.measurements]
        if self.control is not None:
            rows.append((self.control, "more than", not self.control.is_within))
        lines = [
            f"    {name:<42}{value:>9.3g}   {relation} {bound:.3g}{'' if is_good else '   <--'}"
            for (name, value, bound), relation, is_good in rows
        ]
        return "\n".join([self.verdict, f"  {self.description}", *lines])


def run_checks(run: Run, loop: ModuleType) -> Iterator[tuple[str, Result]]:
    """Yield (name, result) of each check; `run` is not changed.

    Args:
        run: its directory gets the files of trial runs, up to ten times the size of the weights.
        loop: the module of train.py, whose functions are under test.
    """
    for check in (overfits_one_batch, accumulates_exactly, resumes_exactly, ignores_padding, caches_exactly):
        try:
            result = check(run, loop)
        except FloatingPointError as error:
            result = Result(str(error).partition(";")[0], [Measurement("finite loss", math.nan, 0)])
        yield check.__name__.replace("_", " "), result


def overfits_one_batch(run: Run, loop: ModuleType) -> Result:
    """Overfit a batch and generate its targets: checks loss, labels, optimizer steps and end tokens."""
    candidates = sample_by_length(run.train_loader.dataset, 4 * ROWS)
    by_prompt = {tuple(_prompt_and_target(run, candidates, i)[0]): i for i in range(len(candidates))}
    examples = Subset(candidates, list(by_prompt.values())[:ROWS])  # no prompt with two targets
    run = replace(run, options=replace(run.options, label_smoothing=0.0))
    trial = trial_run(run, examples, batch_size=len(examples))
    trial.model.eval()  # no dropout
    [batch] = _batches(run, examples, ROWS)
    # Search for a learning rate: double it while the loss falls, divide it by 4 when the loss rises.
    lr, initial, goal, last = trial.learning_rate(0) / 10, math.nan, 0.0, math.inf
    for step in range(1, MAX_STEPS + 1):
        loss, _ = loop.take_step(trial, [batch], lr)
        if step == 1:
            initial, goal = loss, OVERFIT_LOSS * min(1.0, loss)
        if loss <= goal:
            with torch.no_grad():  # without autocast, as in generation
                predicted = batch_loss(trial.model, batch)
            if int(predicted.correct) == predicted.tokens:
                break
        if step % PATIENCE == 0:
            lr, last = lr * (2 if loss < last else 0.25), loss
    wrong = _wrong_answers(trial, examples)
    return Result(
        f"a batch of {len(examples)}, no dropout, {step} of {MAX_STEPS} steps, final learning rate {lr:.1g}",
        [Measurement("loss per token, after", loss, goal), Measurement("wrong answers", wrong, 0)],
        control=Measurement("loss per token, before", initial, goal),
    )


def accumulates_exactly(run: Run, loop: ModuleType) -> Result:
    """Compare losses and gradients of large batches and of the same batches in micro-batches."""
    dataset = run.train_loader.dataset
    rows = min(ROWS, 2 * len(dataset) // 5)  # two full steps, and examples for a shorter one
    size = max(1, rows // SPLIT)
    count = rows // size
    if count < 2:
        return Result(f"too few training examples: {len(dataset)}")
    rows = size * count
    examples = sample_by_length(dataset, 2 * rows + min(TAIL, rows - 1), by_labels=True)
    whole = trial_run(run, examples, batch_size=rows, exact=True)
    split = trial_run(run, examples, batch_size=size, grad_accum=count, exact=True)
    # An extra step of one run is compared with NaN, which fails.
    steps = zip_longest(_steps(split, loop), _steps(whole, loop), fillvalue=[torch.tensor(math.nan)] * 3)
    errors = [
        [relative_error(*pair) for pair in zip(own, reference, strict=True)] for own, reference in steps
    ]
    names = ["loss", "gradient norm", "clipped gradient"]
    with torch.no_grad():
        parts = [batch_loss(whole.model, batch) for batch in _batches(run, examples, size)]
    mean = torch.stack([part.total for part in parts]).sum() / sum(part.tokens for part in parts)
    mean_of_means = torch.stack([part.total / part.tokens for part in parts]).mean()
    return Result(
        f"{len(errors)} steps of {rows} examples, the last one shorter: whole, and as {count} x {size}",
        [Measurement(name, error) for name, error in zip(names, np.max(errors, axis=0), strict=True)],
        control=Measurement("loss as a mean of means", relative_error(mean_of_means, mean)),
    )


def resumes_exactly(run: Run, loop: ModuleType) -> Result:
    """Compare an uninterrupted run with one that is stopped within an epoch, saved and resumed."""
    dataset = run.train_loader.dataset
    size = min(ROWS // 2, len(dataset) // 4)
    if not size:
        return Result(f"too few training examples: {len(dataset)}")
    examples = sample_by_length(dataset, 6 * size - 1)  # at least two steps per epoch
    stop, steps = 1, 5

    def trial(name: str) -> Run:
        torch.manual_seed(run.options.seed)
        directory = RunDirectory(run.directory.path / name)
        directory.path.mkdir(exist_ok=True)
        trial = trial_run(run, examples, batch_size=size, grad_accum=2)
        trial.directory, trial.total_steps = directory, steps
        if not any(module.p for module in trial.model.modules() if isinstance(module, nn.Dropout)):
            set_dropout(trial.model, 0.1)  # the random state must matter
        return trial

    whole = _train(trial("whole"), loop)
    stopped = _train(replace(trial("resumed"), total_steps=stop), loop)
    resumed = trial("resumed")
    torch.manual_seed(run.options.seed + 1)  # a new process has another random state
    resumed.resume()
    _train(resumed, loop)
    different = _count_different(_state(resumed), _state(whole))
    repeats = run.device.type == "cpu" or not different
    if not repeats and _count_different(_state(_train(trial("again"), loop)), _state(whole)):
        return Result(f"on {run.device}, two uninterrupted runs differ from each other")
    control = _count_different(_weights(stopped.model), _weights(whole.model))
    return Result(
        f"{steps} steps with dropout, uninterrupted, and stopped after step {stop}, saved and resumed",
        [Measurement("different weights and moments", different, 0)],
        control=Measurement("different weights without resuming", control, 0),
    )


@torch.no_grad()
def ignores_padding(run: Run, loop: ModuleType) -> Result:
    """Compare loss and hidden states of examples alone and padded to a common length."""
    examples = sample_by_length(run.train_loader.dataset, ROWS)
    layout = {"pad_to_max_length": run.options.pad_to_max_length}
    # GPT-2 is trained with right padding, hidden by the causal mask, and generates with left padding.
    [trained] = _batches(run, examples, ROWS, **layout)
    [generated] = _batches(run, examples, ROWS, **layout, padding_side=examples.generation_side)
    alone = _batches(run, examples, 1)
    lengths = [row["input_ids"].shape[1] for row in alone]
    if trained["attention_mask"].all():
        return Result(f"nothing is padded: all examples have {lengths[0]} tokens")
    model = copy.deepcopy(run.model).double().eval()
    loss = torch.stack([batch_loss(model, row).total for row in alone]).sum()
    hidden = torch.cat([_hidden(model, row) for row in alone])
    unmasked = _hidden(model, generated, torch.ones_like(generated["attention_mask"]))
    return Result(
        f"{len(examples)} examples of {min(lengths)} to {max(lengths)} tokens: each alone, and as one batch",
        [
            Measurement("loss", relative_error(batch_loss(model, trained).total, loss)),
            Measurement("last hidden states", relative_error(_hidden(model, generated), hidden)),
        ],
        control=Measurement("last hidden states without the mask", relative_error(unmasked, hidden)),
    )


@torch.no_grad()
def caches_exactly(run: Run, loop: ModuleType) -> Result:
    """Compare hidden states computed at once and token by token with a cache, as in generation."""
    examples = sample_by_length(run.train_loader.dataset, ROWS, by_labels=True)
    [batch] = _batches(run, examples, ROWS, padding_side=examples.generation_side)
    model = copy.deepcopy(run.model).double().eval()
    hidden, without_first = _hidden(model, batch), _hidden(model, batch, hide_first=True)
    return Result(
        f"{len(examples)} examples: at once without a cache, and token by token with it",
        [Measurement("last hidden states", relative_error(_hidden_with_cache(model, batch), hidden))],
        control=Measurement(
            "last hidden states without the first token", relative_error(without_first, hidden)
        ),
    )


# --- Examples and trial runs


class Subset(ExampleDataset):
    """Some examples of another data set."""

    def __init__(self, dataset: ExampleDataset, indices: Sequence[int]) -> None:
        self._dataset, self._indices = dataset, indices
        self.decoder_only = dataset.decoder_only
        self.generation_side = "left" if dataset.decoder_only else "right"  # of padding
        self.records = [dataset.records[i] for i in indices if dataset.records]
        self.lengths = dataset.lengths[indices]
        self.max_input_length, self.max_label_length = dataset.max_input_length, dataset.max_label_length

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._dataset.epoch = self.epoch
        return self._dataset[self._indices[index]]

    def source(self, index: int) -> list[int]:
        """The input ids of an example without its target."""
        return self._dataset.source(self._indices[index])


def sample_by_length(dataset: ExampleDataset, count: int, *, by_labels: bool = False) -> Subset:
    """At most `count` examples, evenly from the shortest to the longest, by input ids or by labels."""
    order = np.argsort(dataset.lengths[:, int(by_labels)], kind="stable")
    chosen = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return Subset(dataset, order[chosen].tolist())


def trial_run(
    run: Run, examples: ExampleDataset, *, batch_size: int, grad_accum: int = 1, exact: bool = False
) -> Run:
    """A copy of the run before its first step, on other examples, at the peak learning rate.

    With `exact`, weights and computation are float64.
    """
    options = replace(run.options, batch_size=batch_size, eval_batch_size=batch_size, grad_accum=grad_accum)
    options = replace(options, eval_every=None, eval_answers=0, metrics=None, best=None, save_every=None)
    options = replace(options, workers=0, early_stopping=0)
    model = copy.deepcopy(run.model)
    if exact:
        model.double()
    is_fp16 = options.precision == "fp16" and not exact
    return replace(
        run,
        options=options,
        model=model,
        compute_loss=BatchLoss(model, run.loss),
        train_loader=make_loader(examples, options, run.tokenizer, training=True),
        valid_loaders={"": make_loader(examples, options, run.tokenizer, training=False)},
        optimizer=make_optimizer(model, options),
        # A low scale: the default one overflows in the first steps, which are then skipped.
        scaler=torch.amp.GradScaler(run.device.type, init_scale=256.0, enabled=is_fp16),
        autocast=nullcontext if exact else run.autocast,
        learning_rate=lambda step: options.lr,
        progress=Progress(),
    )


def _batches(run: Run, examples: Subset, size: int, **layout: Any) -> list[Batch]:
    """All examples in order, on the run's device. `layout` are options of DataLoader."""
    loader = DataLoader(examples, size, pad_id=run.tokenizer.pad_id, bucket=False, **layout)
    return [{name: tensor.to(run.device) for name, tensor in batch.items()} for batch in loader]


def _prompt_and_target(run: Run, examples: Subset, index: int) -> tuple[list[int], list[int]]:
    """Input ids for generation, and the expected output up to its end token."""
    prompt, eos = examples.source(index), run.tokenizer.eos_id
    target = [label for label in examples[index]["labels"] if label != IGNORED_LABEL]
    if examples.records and len(target) < run.options.max_target_length:
        target.append(eos)  # also where the labels lack it, which can be overfitted too
    if not prompt:  # GPT-2's first token has no prediction
        prompt, target = target[:1], target[1:]
    return prompt, up_to_end(target, [eos])


def _wrong_answers(run: Run, examples: Subset) -> int:
    """Number of examples for which greedy generation does not give exactly the target."""
    prompts, targets = zip(*[_prompt_and_target(run, examples, i) for i in range(len(examples))], strict=True)
    ids, mask = padded(run.model, run.tokenizer, prompts)
    with plain_search(run.model):
        rows = generate(run.model, ids, mask, max_new_tokens=max(map(len, targets)))
    prefix = ids.shape[1] if examples.decoder_only else 1  # the prompt, or T5's start token
    outputs = rows[:, prefix:].tolist()
    return sum(row[: len(target)] != target for row, target in zip(outputs, targets, strict=True))


# --- Losses, gradients, weights


def _steps(run: Run, loop: ModuleType) -> Iterator[list[Tensor]]:
    """Take the steps of an epoch with learning rate 0 and without dropout.

    Yields the loss, the gradient norm and the clipped gradient (weights,) of each.
    """
    gradients: list[Tensor] = []
    run.optimizer.register_step_pre_hook(lambda *_: gradients.append(_gradient(run.model)))
    run.model.eval()
    for micro_batches in loop.grouped(run.train_loader, run.options.grad_accum):
        loss, norm = loop.take_step(run, micro_batches, 0.0)
        yield [*torch.tensor([loss, norm], dtype=torch.float64), gradients.pop()]


def _train(run: Run, loop: ModuleType) -> Run:
    """Run `loop.train` without console output."""
    with redirect_stdout(StringIO()):
        loop.train(run)
    if run.progress.step < run.total_steps:
        raise KeyboardInterrupt  # the loop has handled it and stopped early
    return run


def _gradient(model: Model) -> Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


def _weights(model: Model) -> Tensor:
    return parameters_to_vector(p.detach() for p in model.parameters() if p.requires_grad)


def _state(run: Run) -> Tensor:
    """All trained weights and the optimizer's moments."""
    moments = [tensor for slot in run.optimizer.state_dict()["state"].values() for tensor in slot.values()]
    return torch.cat([_weights(run.model).cpu(), *(moment.flatten().cpu() for moment in moments)])


# --- Hidden states


def _hidden(model: Model, batch: Batch, mask: Tensor | None = None, *, hide_first: bool = False) -> Tensor:
    """The input of lm_head at all positions that are not padding, (tokens, D).

    `mask` replaces the batch's attention_mask; `hide_first` masks the decoder's first token.
    """
    mask = batch["attention_mask"] if mask is None else mask
    decoder_ids, is_token = _decoder_inputs(model, batch)
    first = is_token.long().argmax(1, keepdim=True)
    visible = torch.ones_like(decoder_ids).scatter(1, first, 0) if hide_first else None
    if isinstance(model, T5ForConditionalGeneration):
        return model.last_hidden(batch["input_ids"], mask, decoder_ids, visible)[is_token]
    return model.last_hidden(decoder_ids, mask if visible is None else mask * visible)[is_token]


def _hidden_with_cache(model: Model, batch: Batch) -> Tensor:
    """The same, the last CACHED_TOKENS positions one at a time."""
    mask = batch["attention_mask"]
    decoder_ids, is_token = _decoder_inputs(model, batch)
    length = decoder_ids.shape[1]
    cache = KVCache(length)
    ranges = pairwise([0, *range(max(1, length - CACHED_TOKENS), length + 1)])
    if isinstance(model, T5ForConditionalGeneration):
        source = model.encode(batch["input_ids"], mask)
        hidden = [model.decode_hidden(decoder_ids[:, a:b], source, mask, cache=cache) for a, b in ranges]
    else:
        hidden = [model.last_hidden(decoder_ids[:, a:b], mask[:, :b], cache=cache) for a, b in ranges]
    return torch.cat(hidden, dim=1)[is_token]


def _decoder_inputs(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """The decoder's input ids (B, T), and the mask of positions that are not padding."""
    if isinstance(model, T5ForConditionalGeneration):
        return model.shift_right(batch["labels"]), batch["labels"] != IGNORED_LABEL
    return batch["input_ids"], batch["attention_mask"].bool()


# --- Differences


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Norm of the difference relative to the reference's norm; infinite where the shapes differ."""
    if value.shape != reference.shape:
        return math.inf
    error = (value.double() - reference.double()).norm().item()
    return error / reference.double().norm().item() if error else 0.0


def _count_different(values: Tensor, others: Tensor) -> int:
    return int((values != others).sum()) if values.shape == others.shape else max(values.numel(), 1)
