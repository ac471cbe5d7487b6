"""Compare everything that both models compute in one configuration of the parity matrix.

docs/parity.md derives the bounds. In short: transformers' model in float64 is the truth. In a lower
precision the error of transformers is measured tensor by tensor, and ours may be at most `MAX_ERROR_RATIO`
times as large. The bound of float64 is the same, scaled by the ratio of the unit roundoffs.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from ftcore.decoding import generate, sampling
from tests.helpers.oracle import VOCAB
from tests.helpers.parity_configurations import LENGTHS, ROWS, Batch, Configuration, batch_of
from tests.helpers.parity_sides import Theirs, sides_of

MAX_ERROR_RATIO = 4
# Unit roundoff: the largest relative error of one rounding.
ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "autocast": 2.0**-8,
}
# A sum of n products has the variance of 1 + n/4 roundings, but half precision sums in float32 and rounds
# once.
LONGEST_SUM = ROWS * max(LENGTHS)
ROUNDINGS_OF_A_SUM = math.sqrt(1 + LONGEST_SUM / 4)
IMPROBABLE = 1e-9  # per chi-square test: 1e-6 for a thousand of them

PAD, ENDS = 2, [1, *range(5, 16)]  # many EOS ids, so that rows end early
DRAWS = 1000


@dataclass
class Ledger:
    """Counts comparisons and records the largest error / bound."""

    configurations: int = 0
    worst: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    comparisons: Counter[tuple[str, str]] = field(default_factory=Counter)
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count(self, configuration: Configuration) -> None:
        self.configurations += 1
        for dimension in ("variant", "precision", "padding", "cache", "optimizer", "source", "length"):
            self.cells[dimension, str(getattr(configuration, dimension))] += 1

    def require(self, quantity: str, precision: str, name: str, error: float, bound: float) -> None:
        """Raise AssertionError if `error` exceeds `bound` or either is NaN."""
        self.comparisons[quantity, precision] += 1
        if not error <= bound:
            where = f"{quantity} {name}".strip()
            raise AssertionError(f"{where} in {precision}: off by {error:.3g}, allowed are {bound:.3g}")
        if error:
            self.worst[quantity, precision] = max(self.worst[quantity, precision], error / bound)

    def require_equal(self, quantity: str, name: str, ours: Tensor, theirs: Tensor) -> None:
        self.comparisons[quantity, "float64"] += 1
        if ours.tolist() != theirs.tolist():
            raise AssertionError(f"{quantity} {name}: {ours.tolist()}, theirs are {theirs.tolist()}")

    def __str__(self) -> str:
        """Two tables in Markdown."""
        lines = ["| dimension | configurations |", "|---|---|"]
        for dimension in dict.fromkeys(dimension for dimension, _ in self.cells):
            values = sorted(
                (value, count) for (name, value), count in self.cells.items() if name == dimension
            )
            lines.append(f"| {dimension} | {', '.join(f'{value} {count}' for value, count in values)} |")
        precisions = list(ROUNDOFF)
        lines += ["", f"| largest error / bound | {' | '.join(precisions)} | comparisons |"]
        lines.append("|---" * (len(precisions) + 2) + "|")
        for quantity in dict.fromkeys(quantity for quantity, _ in self.comparisons):
            counts = [self.comparisons[quantity, precision] for precision in precisions]
            shares = [
                f"{self.worst[quantity, precision]:.2g}" if count else ""
                for precision, count in zip(precisions, counts, strict=True)
            ]
            lines.append(f"| {quantity} | {' | '.join(shares)} | {sum(counts)} |")
        return "\n".join(lines)


def check(configuration: Configuration, ledger: Ledger | None = None) -> None:
    """Compare everything in one configuration. Raises AssertionError at the first difference."""
    cell = Cell(configuration, Ledger() if ledger is None else ledger)
    cell.ledger.count(configuration)
    off = check_forward(cell)
    check_greedy_choice(cell, off)
    check_decoding(cell)
    if configuration.is_t5 or configuration.length > 1:  # GPT-2 predicts from the second token on
        check_training(cell)


class Cell:
    """A configuration with its models, inputs and ledger."""

    def __init__(self, configuration: Configuration, ledger: Ledger):
        self.configuration = configuration
        self.precision = configuration.precision
        self.ledger = ledger
        self.batch = batch_of(configuration)
        self.sides = sides_of(configuration)
        self.truth, self.witness, self.theirs, self.ours = self.sides

    def compare(
        self,
        quantity: str,
        found: list[dict[str, Tensor]],
        *,
        scales: Mapping[str, float] | None = None,
        together: bool = False,
    ) -> None:
        """Compare tensors of the four models, by name, with the truth, which comes first.

        Args:
            scales: denominators of the relative errors; the norms by default.
            together: in the low precision, treat all tensors as one.
        """
        true, *others = found
        witness, theirs, ours = (
            {name: (values[name].double() - true[name]).norm().item() for name in true} for values in others
        )
        scales = scales or {name: values.norm().item() for name, values in true.items()}
        for name, bound in bounds(theirs, scales, self.precision).items():
            self.ledger.require(quantity, "float64", name, witness[name], in_float64(bound, self.precision))
        if together:
            ours, theirs, scales = ({"": math.hypot(*values.values())} for values in (ours, theirs, scales))
        for name, bound in bounds(theirs, scales, self.precision).items():
            self.ledger.require(quantity, self.precision, name, ours[name], bound)


def bounds(errors: Mapping[str, float], scales: Mapping[str, float], precision: str) -> dict[str, float]:
    """Bounds of our errors by tensor, given theirs.

    Where their error of a tensor is small by chance, the root mean square over all tensors replaces it.
    """
    relative = [errors[name] / scale for name, scale in scales.items() if scale]
    usual = math.sqrt(sum(share**2 for share in relative) / max(1, len(relative)))
    return {
        name: MAX_ERROR_RATIO * max(errors[name], max(usual, ROUNDOFF[precision]) * scale)
        for name, scale in scales.items()
    }


def in_float64(bound: float, precision: str) -> float:
    """A precision's bound scaled to float64, where the truth has rounding errors too."""
    sums = 1.0 if precision == "float32" else ROUNDINGS_OF_A_SUM
    return bound * math.sqrt(2) * sums * ROUNDOFF["float64"] / ROUNDOFF[precision]


# --------------------------------------------------------------------------------------------- forward


def check_forward(cell: Cell) -> float:
    """Returns the bound of a single logit's error."""
    batch, read = cell.batch, cell.batch.read
    inside = [side.inside(batch) for side in cell.sides]
    cell.compare("hidden states", [streams(found, batch) for found in inside])
    cell.compare("attention weights", [maps(found, batch) for found in inside])
    logits = []
    for side, found in zip(cell.sides, inside, strict=True):
        ways = {"explicit": found[""], "fused": side.logits(batch)}
        if cell.configuration.cache != "none":
            ways["cached"] = side.cached(batch, cell.configuration.chunks)
        logits.append({way: values[read] for way, values in ways.items()})
    logits[0] = dict.fromkeys(logits[0], logits[0]["explicit"])  # one truth for all of them
    cell.compare("logits", logits)
    truth, _, theirs, _ = (values["fused"] for values in logits)
    error, size = (theirs.double() - truth).abs().max().item(), truth.abs().max().item()
    return bounds({"": error}, {"": size}, cell.precision)[""]


def streams(inside: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Hidden states after every block and final norm, at tokens."""
    return {
        name: values[rows_read(name, batch)]
        for name, values in inside.items()
        if name.split(".")[-2:-1] in (["block"], ["h"]) or name.endswith(("final_layer_norm", "ln_f"))
    }


def maps(inside: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """The attention weights of every head, (queries that are tokens, H, S)."""
    return {
        name: values.transpose(1, 2)[rows_read(name, batch)]
        for name, values in inside.items()
        if name.endswith(".softmax")
    }


def rows_read(name: str, batch: Batch) -> Tensor:
    return batch.attention_mask.bool() if name.startswith("encoder") else batch.read


# -------------------------------------------------------------------------------------------- training


def check_training(cell: Cell) -> None:
    batch, precision = cell.batch, cell.precision
    with torch.no_grad():
        true_losses, their_losses = cell.truth.token_losses(batch), cell.theirs.token_losses(batch)
        true_loss = true_losses.mean().item()
        # The error of a mean is at most the root mean square of the errors of its terms.
        error = (their_losses.double() - true_losses).square().mean().sqrt().item()
        [bound] = bounds({"": error}, {"": true_loss}, precision).values()
        ours, witness = (abs(side.loss(batch).item() - true_loss) for side in (cell.ours, cell.witness))
    cell.ledger.require("loss", precision, "", ours, bound)
    cell.ledger.require("loss", "float64", "", witness, in_float64(bound, precision))

    # A power of two that scales gradients to about 1, for float16 and for the optimizers' epsilon.
    first = cell.truth.gradients(batch)
    size = torch.cat([slope.flatten() for slope in first.values()]).square().mean().sqrt().item()
    scale = 2.0 ** -round(math.log2(size))
    optimizer = cell.configuration.optimizer
    gradients, weights = zip(*(side.trained(batch, optimizer, scale) for side in cell.sides), strict=True)
    cell.compare("gradients", list(gradients), scales=sizes_in_blocks(gradients[0]))
    # An optimizer amplifies small gradients, whose errors may come from few roundings; over all tensors
    # chance averages out.
    cell.compare(f"weights after {optimizer}", list(weights), together=True)


def sizes_in_blocks(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """For each parameter the largest norm of the gradients in its block.

    Some gradients are pure rounding error: softmax is invariant to a key's bias, and with a single key also
    to the queries and the norm before them.
    """
    blocks = {name: ".".join(name.split(".")[:3]) for name in gradients}  # decoder.block.0, transformer.h.0
    largest: dict[str, float] = defaultdict(float)
    for name, slope in gradients.items():
        largest[blocks[name]] = max(largest[blocks[name]], slope.norm().item())
    return {name: largest[block] for name, block in blocks.items()}


# -------------------------------------------------------------------------------------------- decoding


def prompts(cell: Cell) -> tuple[Tensor, Tensor]:
    """Ids and mask for generation; GPT-2's padding is moved to the left."""
    ids, mask = cell.batch.input_ids, cell.batch.attention_mask
    if not cell.configuration.is_t5:
        mask = {"right": mask.flip(1), "mixed": torch.ones_like(mask)}.get(cell.configuration.padding, mask)
    return ids.masked_fill(mask == 0, PAD), mask


def check_greedy_choice(cell: Cell, off: float) -> None:
    """In a low precision greedy search may choose another token, but only if the true scores differ by at
    most twice `off`, the bound of a score's error.
    """
    ids, mask = prompts(cell)
    new = 5
    with cell.ours.computing():
        chosen = generate(cell.ours.model, ids, mask, max_new_tokens=new, eos_token_id=None, pad_token_id=PAD)
    chosen = chosen.cpu()
    fed = chosen[:, :-1]
    if cell.configuration.is_t5:
        read = Batch(ids, mask, chosen, fed, torch.ones_like(fed))
    else:
        read = Batch(fed, F.pad(mask, (0, new - 1), value=1), chosen)
    logits = cell.truth.logits(read)[:, -new:]
    regret = (logits.amax(-1) - logits.gather(-1, chosen[:, -new:, None])[..., 0]).max().item()
    cell.ledger.require("greedy choice", cell.precision, "", regret, 2 * off)


def check_decoding(cell: Cell) -> None:
    """In float64: equal ids in greedy search, beam search and sampling, and equal distributions."""
    ids, mask = prompts(cell)
    greedy, beams, drawing = options(random.Random(cell.configuration.seed))
    for quantity, chosen in {"greedy ids": greedy, "beam ids": beams}.items():
        want = theirs_generate(cell.truth, ids, mask, chosen).sequences
        got = generate(cell.witness.model, ids, mask, **chosen)
        cell.ledger.require_equal(quantity, f"{chosen}", got, want)

    torch.manual_seed(cell.configuration.seed)
    theirs = theirs_generate(cell.truth, ids, mask, drawing)
    torch.manual_seed(cell.configuration.seed)
    distributions: list[Tensor] = []
    with mock.patch.object(sampling, "apply_processors", keeping(sampling.apply_processors, distributions)):
        got = generate(cell.witness.model, ids, mask, **drawing)
    cell.ledger.require_equal("sampled ids", f"{drawing}", got, theirs.sequences)
    # Only running rows: finished ones are fed different (ignored) tokens by the two libraries.
    new = theirs.sequences[:, -len(theirs.scores) :]
    running = F.pad(torch.isin(new, torch.tensor(ENDS)).cumsum(1) == 0, (1, 0), value=True)
    for step, (mine, scores) in enumerate(zip(distributions, theirs.scores, strict=True)):
        mine, scores = mine[running[:, step]], scores[running[:, step]]
        # Both round scores to float32, which changes probabilities by the same relative amount.
        bound = MAX_ERROR_RATIO * ROUNDOFF["float32"] * max(1.0, scores[scores.isfinite()].abs().max().item())
        error = (mine.softmax(-1) - scores.softmax(-1)).abs().max().item()
        cell.ledger.require("distributions", "float64", f"{drawing}", error, bound)

    # The empirical distribution of many draws.
    generator = torch.Generator().manual_seed(cell.configuration.seed)
    several = drawing | {"num_return_sequences": DRAWS, "max_new_tokens": 1, "generator": generator}
    drawn = generate(cell.witness.model, ids[:1], mask[:1], **several)[:, -1]
    chance = chi_square(drawn.bincount(minlength=VOCAB), theirs.scores[0][0].double().softmax(-1))
    cell.ledger.require("draws", "float64", f"{several}", IMPROBABLE, chance)


def options(r: random.Random) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Arguments of `generate` for greedy search, beam search and sampling."""
    greedy: dict[str, Any] = {
        "pad_token_id": PAD,
        "eos_token_id": ENDS,
        "max_new_tokens": r.choice([1, 4, 7]),
    }
    if r.random() < 0.5:
        greedy |= {"no_repeat_ngram_size": r.choice([1, 2]), "repetition_penalty": r.choice([1.3, 0.8])}
    beams = {"num_beams": r.choice([2, 3]), "early_stopping": r.choice([True, False, "never"])}
    beams |= {"length_penalty": r.choice([0.6, 1.0, 2.0]), "num_return_sequences": 2}
    cut = r.choice([{"top_k": 0}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.7}])
    drawing = {"do_sample": True, "temperature": r.choice([0.7, 1.0, 1.5])} | cut
    return greedy, greedy | beams, greedy | drawing


def theirs_generate(truth: Theirs, ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Any:
    config = truth.model.config
    deeper = truth.is_t5 and config.num_decoder_layers > config.num_layers
    with truth.computing():
        return truth.model.generate(
            ids,
            attention_mask=mask,
            use_cache=not deeper,  # its cache has as many layers as the encoder
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )


def keeping(function: Any, results: list[Any]) -> Any:
    """Wrap `function` to append its results to a list."""

    def kept(*args: Any) -> Any:
        results.append(function(*args))
        return results[-1]

    return kept


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """The p-value of Pearson's chi-square test.

    Tokens with an expected count below five are pooled; an observed token of probability 0 gives 0.
    """
    if counts[probabilities == 0].any():
        return 0.0
    expected = probabilities * counts.sum()
    rare = expected < 5
    observed = torch.cat([counts[~rare].double(), counts[rare].sum()[None].double()])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected).square() / expected).sum()
    freedom = torch.tensor(max(1, len(expected) - 1), dtype=torch.double)
    return torch.special.gammaincc(freedom / 2, statistic / 2).item()
