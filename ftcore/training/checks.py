"""What must hold of every run, measured on a few examples of this one: `python -m ftcore.train --check`.

Most checks compute one thing in two ways that differ only in the order of their sums, and compare them twice:
in float64 and in the run's precision. By how much they may differ stands in check_result.py.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ftcore.data import DataLoader, ExampleDataset
from ftcore.data.loader import pad_rows
from ftcore.data.tokenizer import IGNORED_LABEL
from ftcore.models import KVCache, Model, T5ForConditionalGeneration
from ftcore.training.check_result import HALF, Check, Figure, apart, impossible, no_worse, rounding_bounds
from ftcore.training.loss import batch_loss
from ftcore.training.rehearsal import Few, rehearse, spread
from ftcore.training.setup import Run

Batch = dict[str, Tensor]

ROWS = 8  # examples of a window, of which the accumulation makes SPLIT micro-batches
SPLIT = 4
TAIL = 3  # examples of the epoch's last, short window

LEARNT = 0.1  # nats a token, and the share of the loss at the beginning
STEPS, PATIENCE = 400, 20  # how many it may take at most, and how many there are between two learning rates

TOKENS = 32  # that are fed to the cache one by one


class Loop(NamedTuple):
    """The functions that train and generate: what is checked are they, not copies of them."""

    train: Callable[[Run], None]
    take_step: Callable[[Run, Sequence[Batch], float], tuple[float, float]]  # -> loss, gradient norm
    accumulate_gradients: Callable[[Run, Sequence[Batch]], float]
    windows: Callable[[DataLoader, int], Iterator[list[Batch]]]
    generate: Callable[..., Tensor]


def run_checks(run: Run, loop: Loop, directory: Path) -> Iterator[tuple[str, Check]]:
    """Make every check, one after the other, and yield its name and what it has found; `run` stays as it is.

    Args:
        directory: an empty one for what rehearsals save: up to ten times the size of the weights.
    """
    for check in (overfits_one_batch, accumulates_exactly, resumes_exactly, ignores_padding, caches_exactly):
        place = directory / check.__name__
        place.mkdir()
        try:
            found = check(run, loop, place)
        except FloatingPointError as error:
            found = Check("", [Figure("finite losses", math.nan, 0)], str(error).partition(";")[0])
        yield check.__name__.replace("_", " "), found


def overfits_one_batch(run: Run, loop: Loop, directory: Path) -> Check:
    """A model that comes to know a batch by heart, ends included, has a loss, labels and steps that work."""
    examples = _with_different_prompts(run)
    rehearsal = rehearse(run, examples, directory / "run", batch_size=len(examples))
    rehearsal.options.label_smoothing = 0.0
    rehearsal.model.eval()  # no dropout
    [batch] = _batches(run, examples, len(examples))

    # No rate suits every model, so one is looked for: doubled while the loss falls, quartered when it rises.
    lr, before, goal, last = rehearsal.learning_rate(0) / 10, math.nan, 0.0, math.inf
    for step in range(1, STEPS + 1):
        loss, _ = loop.take_step(rehearsal, [batch], lr)
        if step == 1:
            before, goal = loss, LEARNT * min(1.0, loss)
        if loss <= goal and _first_guesses_are_right(rehearsal, batch):
            break
        if step % PATIENCE == 0:
            lr, last = lr * (2 if loss < last else 0.25), loss

    return Check(
        f"{_count(len(examples), 'example')} to learn by heart without dropout: {step} steps of at most "
        f"{STEPS}, the last at learning rate {lr:.1g}",
        [
            Figure("loss per token, after", loss, goal),
            Figure("generated answers that are not the target", _wrong_answers(rehearsal, loop, examples), 0),
        ],
        f"{LEARNT} nats are 90% for the right token; a tenth of the loss before may be less.\n"
        "  Answers have to stop where their targets do.",
        fault=Figure("loss per token, before", before, goal),
    )


def accumulates_exactly(run: Run, loop: Loop, directory: Path) -> Check:
    """A window gives one loss, gradient and step, however it is split into micro-batches."""
    dataset = _training_set(run)
    rows = min(ROWS, 2 * len(dataset) // 5)  # so that two windows leave some for a short one
    size = max(1, rows // SPLIT)
    count = rows // size
    if count < 2:
        return impossible(f"{_count(len(dataset), 'example')} to train on are too few")
    rows = size * count
    examples = spread(dataset, 2 * rows + min(TAIL, rows - 1), by_labels=True)

    def split(batch_size: int, accumulate: int, *, exact: bool) -> Run:
        place = directory / f"{batch_size}x{accumulate}"
        return rehearse(run, examples, place, batch_size=batch_size, accumulate=accumulate, exact=exact)

    whole, parts = split(rows, 1, exact=True), split(size, count, exact=True)
    start, truth, fault = _weights(whole.model), _first_gradient(whole, loop), _error_of_means(parts, loop)
    losses, norms, end, felt = _epoch(whole, loop)
    losses_of_parts, norms_of_parts, end_of_parts, _ = _epoch(parts, loop)
    moved, moved_by_parts = (end - start)[felt], (end_of_parts - start)[felt]
    usual = _first_gradient(split(rows, 1, exact=False), loop)
    summed = _first_gradient(split(size, count, exact=False), loop)
    return Check(
        f"{_count(len(losses), 'step')} of {rows} examples, the last of fewer: as one batch, and as {count} "
        f"micro-batches of {size}",
        [
            Figure("loss, float64", apart(losses_of_parts, losses), HALF),
            Figure("gradient's norm, float64", apart(norms_of_parts, norms), HALF),
            Figure("change of the weights, float64", apart(moved_by_parts, moved), HALF),
            no_worse(run.options.precision, "gradient", summed, usual, truth),
        ],
        rounding_bounds(run.options.precision, "one batch"),
        fault=Figure("loss, if micro-batches counted alike", fault, HALF),
    )


def resumes_exactly(run: Run, loop: Loop, directory: Path) -> Check:
    """A run that was stopped in the middle of an epoch, saved and resumed is the uninterrupted run."""
    dataset = _training_set(run)
    size = min(ROWS // 2, len(dataset) // 4)
    if not size:
        return impossible(f"{_count(len(dataset), 'example')} to train on are too few")
    examples = spread(dataset, 6 * size - 1)  # an epoch of two steps at least
    stop, steps = 1, 5

    def begin(place: str) -> Run:
        torch.manual_seed(run.options.seed)
        rehearsal = rehearse(run, examples, directory / place, batch_size=size, accumulate=2, steps=steps)
        _require_dropout(rehearsal.model)
        return rehearsal

    whole = _trained(begin("whole"), loop)
    stopped = _trained(replace(begin("stopped"), total_steps=stop), loop)
    resumed = begin("stopped")
    torch.manual_seed(run.options.seed + 1)  # the random numbers of another process
    resumed.resume()
    _trained(resumed, loop)

    wanted = _weights(whole.model)
    different = _different(_weights(resumed.model), wanted)
    if (
        different
        and run.device.type != "cpu"
        and _different(_weights(_trained(begin("again"), loop).model), wanted)
    ):
        return impossible(f"on this device, {run.device}, two uninterrupted runs differ already")
    return Check(
        f"{steps} steps with dropout, and the same, stopped after {stop}, saved and resumed",
        [
            Figure("weights that differ", different, 0),
            Figure("optimizer's numbers that differ", _different(_moments(resumed), _moments(whole)), 0),
        ],
        "The same computations in the same order: every bit has to be the same.",
        fault=Figure("weights that differ without resuming", _different(_weights(stopped.model), wanted), 0),
    )


def ignores_padding(run: Run, loop: Loop, directory: Path) -> Check:
    """Rows that are padded to one length give what each gives alone."""
    examples = spread(_training_set(run), ROWS)
    # GPT-2 learns with padding on the right, which causality hides, and generates with padding on the left.
    side = "left" if examples.decoder_only else "right"
    layout = {"pad_to_max_length": run.options.pad_to_max_length}
    [trained] = _batches(run, examples, len(examples), **layout)
    [padded] = _batches(run, examples, len(examples), **layout, padding_side=side)
    alone = _batches(run, examples, 1)
    lengths = [row["input_ids"].shape[1] for row in alone]
    shortest, longest = min(lengths), max(lengths)
    if padded["attention_mask"].all():
        return impossible(f"all examples have {lengths[0]} tokens, so that nothing is padded")
    everything = torch.ones_like(padded["attention_mask"])
    exact, own = _models(run)
    with torch.no_grad():
        losses, loss = [batch_loss(exact, row).total for row in alone], batch_loss(exact, trained).total
        truth = torch.cat([_hidden(exact, row) for row in alone])
        with_padding, unmasked = _hidden(exact, padded), _hidden(exact, padded, everything)
        with run.autocast():
            usual, own_padded = torch.cat([_hidden(own, row) for row in alone]), _hidden(own, padded)
    return Check(
        f"{_count(len(examples), 'example')} of {shortest} to {longest} tokens: each alone, and in one batch",
        [
            Figure("loss, float64", apart(loss, torch.stack(losses).sum()), HALF),
            Figure("last hidden states, float64", apart(with_padding, truth), HALF),
            no_worse(run.options.precision, "last hidden states", own_padded, usual, truth),
        ],
        rounding_bounds(run.options.precision, "examples alone"),
        fault=Figure("last hidden states without the mask", apart(unmasked, truth), HALF),
    )


def caches_exactly(run: Run, loop: Loop, directory: Path) -> Check:
    """Through the cache, token by token as in generation, a text gives what it gives at once."""
    examples = spread(_training_set(run), ROWS, by_labels=True)
    [batch] = _batches(
        run, examples, len(examples), padding_side="left" if examples.decoder_only else "right"
    )
    exact, own = _models(run)
    with torch.no_grad():
        truth, cached = _hidden(exact, batch), _hidden_through_cache(exact, batch)
        forgetful = _hidden(exact, batch, forget_first=True)
        with run.autocast():
            usual, own_cached = _hidden(own, batch), _hidden_through_cache(own, batch)
    return Check(
        f"{_count(len(examples), 'example')}, at once without a cache, and a token at a time with it",
        [
            Figure("last hidden states, float64", apart(cached, truth), HALF),
            no_worse(run.options.precision, "last hidden states", own_cached, usual, truth),
        ],
        rounding_bounds(run.options.precision, "the way without a cache"),
        fault=Figure("last hidden states without the first token", apart(forgetful, truth), HALF),
    )


# --- the examples


def _training_set(run: Run) -> ExampleDataset:
    return cast(ExampleDataset, run.train_loader.dataset)


def _with_different_prompts(run: Run) -> Few:
    """Examples that can be told apart by their prompts: of two equal ones, one answer could not be learnt."""
    some = spread(_training_set(run), 4 * ROWS)
    by_prompt = {tuple(_prompt_and_answer(run, some, index)[0]): index for index in range(len(some))}
    return Few(some, list(by_prompt.values())[:ROWS])


def _prompt_and_answer(run: Run, examples: Few, index: int) -> tuple[list[int], list[int]]:
    """What the model is given of an example, and what it should write then, up to its end."""
    prompt, eos = examples.source(index), run.tokenizer.eos_id
    answer = [label for label in examples[index]["labels"] if label != IGNORED_LABEL]
    if examples.records:  # labels that lack the end would be learnt just as well: make them once more
        whole = run.tokenizer.encode(examples.records[index].target) + [eos] * examples.decoder_only
        answer = whole if len(whole) <= run.options.max_target_length else answer
    if not prompt:  # GPT-2 begins with a token that nothing predicts
        prompt, answer = answer[:1], answer[1:]
    return prompt, answer[: answer.index(eos) + 1] if eos in answer else answer


def _batches(run: Run, examples: Few, size: int, **layout: Any) -> list[Batch]:
    """All examples in their order, on the run's device. `layout` are options of DataLoader."""
    loader = DataLoader(examples, size, pad_id=run.tokenizer.pad_id, bucket=False, **layout)
    return [{name: tensor.to(run.device) for name, tensor in batch.items()} for batch in loader]


# --- what is computed from them


def _first_guesses_are_right(run: Run, batch: Batch) -> bool:
    """Without autocast, as generation computes."""
    with torch.no_grad():
        loss = batch_loss(run.model, batch)
    return int(loss.correct) == loss.tokens


def _wrong_answers(run: Run, loop: Loop, examples: Few) -> int:
    """How many of the examples the model does not answer with exactly their targets."""
    pairs = [_prompt_and_answer(run, examples, index) for index in range(len(examples))]
    prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
    side = "left" if examples.decoder_only else "right"
    ids = loop.generate(
        run.model,
        pad_rows(prompts, run.tokenizer.pad_id, side),
        pad_rows([[1] * len(prompt) for prompt in prompts], 0, side),
        max_new_tokens=max(map(len, answers)),
        # greedily, whatever the checkpoint's generation_config.json says
        num_beams=1,
        do_sample=False,
        min_new_tokens=0,
        no_repeat_ngram_size=0,
        repetition_penalty=1.0,
    )
    begin = max(map(len, prompts)) if examples.decoder_only else 1  # T5's answers begin with the start token
    written = ids[:, begin:].tolist()
    return sum(row[: len(answer)] != answer for row, answer in zip(written, answers, strict=True))


def _epoch(run: Run, loop: Loop) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and the gradient's norm of each step of an epoch without dropout, and the weights after it.

    The last tensor says which weights have felt a gradient that can be told from rounding. The others, such
    as the biases of GPT-2's keys, which shift all scores of a query alike, an optimizer moves by chance: it
    divides each gradient by its own size.
    """
    run.model.eval()
    felt = torch.zeros_like(_weights(run.model), dtype=torch.bool)

    def feel(*_: Any) -> None:
        gradient = _gradient_of(run.model)
        felt.logical_or_(gradient.abs() > HALF * gradient.square().mean().sqrt())

    run.optimizer.register_step_pre_hook(feel)
    windows = loop.windows(run.train_loader, run.options.grad_accum)
    taken = [loop.take_step(run, window, run.learning_rate(0)) for window in windows]
    losses, norms = torch.tensor(taken, dtype=torch.float64).T
    return losses, norms, _weights(run.model), felt


def _first_gradient(run: Run, loop: Loop) -> Tensor:
    """The gradient of the first window without dropout."""
    run.model.eval()
    window = next(loop.windows(run.train_loader, run.options.grad_accum))
    while True:
        loop.accumulate_gradients(run, window)
        run.scaler.unscale_(run.optimizer)
        gradient = _gradient_of(run.model)
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.update()  # where fp16 has overflowed, as it does at first, to a lower scale
        if gradient.isfinite().all() or run.scaler.get_scale() <= 1.0:
            return gradient


def _gradient_of(model: Model) -> Tensor:
    """Of all trained weights in one row."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    return torch.cat([gradient.flatten() for gradient in gradients])


def _error_of_means(run: Run, loop: Loop) -> float:
    """How far off the loss of a window would be, were it the mean of its micro-batches' means; the most."""
    errors = []
    for window in loop.windows(run.train_loader, run.options.grad_accum):
        with torch.no_grad():
            losses = [
                batch_loss(run.model, {n: t.to(run.device) for n, t in batch.items()}) for batch in window
            ]
        exact = sum(float(loss.total) for loss in losses) / sum(loss.tokens for loss in losses)
        mean = sum(float(loss.total) / loss.tokens for loss in losses) / len(losses)
        errors.append(abs(mean - exact) / exact)
    return max(errors)


def _trained(run: Run, loop: Loop) -> Run:
    """The run after `loop.train`, of which nothing is shown."""
    with redirect_stdout(StringIO()):
        loop.train(run)
    if run.progress.step < run.total_steps:
        raise KeyboardInterrupt  # the loop has answered it
    return run


def _require_dropout(model: Model) -> None:
    """Without dropout, a run that draws other random numbers would come to the same weights."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not any(layer.p for layer in layers):
        for layer in layers:
            layer.p = 0.1


def _models(run: Run) -> tuple[Model, Model]:
    """The model without dropout, in float64 and as it is."""
    return copy.deepcopy(run.model).double().eval(), copy.deepcopy(run.model).eval()


def _hidden(
    model: Model, batch: Batch, attention_mask: Tensor | None = None, *, forget_first: bool = False
) -> Tensor:
    """What the head reads at every token that is no padding, row after row, (tokens, D).

    `attention_mask` takes the place of the batch's. With `forget_first` no position sees the first token.
    """
    mask = batch["attention_mask"] if attention_mask is None else attention_mask
    decoder_ids, is_token = _decoder_ids(model, batch)
    first = is_token.long().argmax(1, keepdim=True)
    visible = torch.ones_like(decoder_ids).scatter(1, first, 0) if forget_first else None
    if isinstance(model, T5ForConditionalGeneration):
        return model.last_hidden(batch["input_ids"], mask, decoder_ids, visible)[is_token]
    return model.last_hidden(decoder_ids, mask if visible is None else mask * visible)[is_token]


def _hidden_through_cache(model: Model, batch: Batch) -> Tensor:
    """The same, of which the last TOKENS positions are fed one by one."""
    mask = batch["attention_mask"]
    decoder_ids, is_token = _decoder_ids(model, batch)
    length = decoder_ids.shape[1]
    prompt = max(1, length - TOKENS)
    cache = KVCache(length)
    chunks = decoder_ids.split([prompt, *[1] * (length - prompt)], dim=1)
    if isinstance(model, T5ForConditionalGeneration):
        source = model.encode(batch["input_ids"], mask)
        hidden = [model.decode_hidden(chunk, source, mask, cache=cache) for chunk in chunks]
    else:
        ends = range(prompt, length + 1)
        hidden = [
            model.last_hidden(chunk, mask[:, :end], cache=cache)
            for chunk, end in zip(chunks, ends, strict=True)
        ]
    return torch.cat(hidden, dim=1)[is_token]


def _decoder_ids(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the decoder reads, (B, T), and where it is no padding."""
    if isinstance(model, T5ForConditionalGeneration):
        return model.shift_right(batch["labels"]), batch["labels"] != IGNORED_LABEL
    return batch["input_ids"], batch["attention_mask"].bool()


# --- how far it is apart


def _weights(model: Model) -> Tensor:
    """All trained weights in one row."""
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def _moments(run: Run) -> Tensor:
    """All that the optimizer remembers, in one row."""
    state = run.optimizer.state_dict()["state"]
    return torch.cat(
        [number.flatten().cpu() for of_weight in state.values() for number in of_weight.values()]
    )


def _different(numbers: Tensor, others: Tensor) -> int:
    return int((numbers != others).sum()) if numbers.shape == others.shape else max(numbers.numel(), 1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
