"""One cell of the matrix checked: everything that both models compute, and how far apart it may be.

docs/parity.md derives the bounds. In short: the truth is transformers' model in float64. In a lower precision
transformers' own distance from the truth is measured, tensor by tensor, and ours may be `TIMES` of it at most.
In float64 the same distance counts, scaled by what a rounding is there.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from configurations import LENGTHS, ROWS, Batch, Configuration, batch_of
from oracle import VOCAB
from sides import Ours, Side, Theirs, sides_of
from torch import Tensor

from ftcore.decoding import generate, search

TIMES = 4
# Half of the distance from 1 to the next number: what one rounding may err by, relatively.
ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "autocast": 2.0**-8,
}
# A sum of n products errs by 1 + n/4 roundings' variance, but half precision sums in float32 and rounds once.
LONGEST_SUM = ROWS * max(LENGTHS)
ROUNDINGS_OF_A_SUM = math.sqrt(1 + LONGEST_SUM / 4)
IMPROBABLE = 1e-9  # for each chi-square test: a thousand of them leave a chance of one in a million

PAD, EOS = 2, [1, *range(5, 16)]  # many ends, so that rows end early
DRAWS = 1000


@dataclass
class Ledger:
    """What has been compared, and how near the bounds it came."""

    worst: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    comparisons: Counter[tuple[str, str]] = field(default_factory=Counter)
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count(self, configuration: Configuration) -> None:
        for dimension in ("variant", "precision", "padding", "cache", "optimizer", "source", "length"):
            self.cells[dimension, str(getattr(configuration, dimension))] += 1

    def require(self, quantity: str, precision: str, name: str, error: float, bound: float) -> None:
        """AssertionError where `error` exceeds `bound`, and where either is not a number."""
        self.comparisons[quantity, precision] += 1
        if not error <= bound:
            where = f"{quantity} {name}".strip()
            raise AssertionError(f"{where} in {precision}: {error:.3g} from the truth, {bound:.3g} allowed")
        if error:
            self.worst[quantity, precision] = max(self.worst[quantity, precision], error / bound)

    def __str__(self) -> str:
        """Two tables in Markdown."""
        lines = ["| dimension | configurations |", "|---|---|"]
        for dimension in dict.fromkeys(dimension for dimension, _ in self.cells):
            values = sorted(
                (value, count) for (name, value), count in self.cells.items() if name == dimension
            )
            lines.append(f"| {dimension} | {', '.join(f'{value} {count}' for value, count in values)} |")
        precisions = list(ROUNDOFF)
        lines += ["", f"| worst share of the bound | {' | '.join(precisions)} | comparisons |"]
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
    """Everything, in one cell of the matrix. Raises AssertionError at the first difference."""
    ledger = Ledger() if ledger is None else ledger
    ledger.count(configuration)
    truth, witness, theirs, ours = sides = sides_of(configuration)
    batch = batch_of(configuration)
    precision = configuration.precision

    def compare(
        quantity: str, found: list[dict[str, Tensor]], scales: Mapping[str, float] | None = None
    ) -> None:
        """`found` by the four sides, by name."""
        true, *others = ({name: values[name].double() for name in found[0]} for values in found)
        scales = scales or {name: values.norm().item() for name, values in true.items()}
        errors = [{name: (values[name] - true[name]).norm().item() for name in true} for values in others]
        allowed = bounds(errors[1], scales, precision)
        for name, bound in allowed.items():
            ledger.require(quantity, precision, name, errors[2][name], bound)
            ledger.require(quantity, "float64", name, errors[0][name], in_float64(bound, precision))

    with_inside = [side.inside(batch) for side in sides]
    true_logits = truth.logits(batch)[batch.read]
    logits = []
    for side, inside in zip(sides, with_inside, strict=True):
        ways = {"textbook": inside[""][batch.read], "fused": side.logits(batch)[batch.read]}
        if configuration.cache != "none":
            ways["cached"] = side.cached(batch, configuration.chunks)[batch.read]
        logits.append(ways if side is not truth else dict.fromkeys(ways, true_logits))
    compare("logits", logits)
    compare("hidden states", [streams(inside, batch) for inside in with_inside])
    compare("attention maps", [maps(inside, batch) for inside in with_inside])

    largest = (logits[2]["fused"].double() - true_logits).abs().max().item()
    check_greedy(
        configuration,
        truth,
        ours,
        TIMES * max(largest, ROUNDOFF[precision] * true_logits.abs().max().item()),
        ledger,
    )
    check_decoding(configuration, truth, witness, ledger)
    if configuration.is_t5 or configuration.length > 1:
        check_training(configuration, sides, batch, compare, ledger)


def bounds(errors: Mapping[str, float], scales: Mapping[str, float], precision: str) -> dict[str, float]:
    """How far from the truth we may be, by tensor, after how far they are.

    Where chance made their error of one tensor small, the mean over the tensors of its kind stands for it.
    """
    relative = [errors[name] / scale for name, scale in scales.items() if scale]
    usual = math.sqrt(sum(share**2 for share in relative) / max(1, len(relative)))
    return {
        name: TIMES * max(errors[name], max(usual, ROUNDOFF[precision]) * scale)
        for name, scale in scales.items()
    }


def in_float64(bound: float, precision: str) -> float:
    """The bound of a precision, scaled by what a rounding is in float64."""
    sums = 1.0 if precision == "float32" else ROUNDINGS_OF_A_SUM
    return bound * sums * ROUNDOFF["float64"] / ROUNDOFF[precision]


# ---------------------------------------------------------------------------------------------- inside


def streams(inside: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """The hidden states after every block and after the final norms, where there are tokens."""
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


def check_training(
    configuration: Configuration, sides: tuple[Side, ...], batch: Batch, compare: Any, ledger: Ledger
) -> None:
    truth, witness, theirs, ours = sides
    precision = configuration.precision
    # The mean of token losses errs by no more than their root mean square does.
    with torch.no_grad():
        true_losses, their_losses = truth.token_losses(batch), theirs.token_losses(batch)
        true_loss = true_losses.mean().item()
        apart = (their_losses.double() - true_losses).square().mean().sqrt().item()
        [bound] = bounds({"": apart}, {"": true_loss}, precision).values()
        ledger.require("loss", precision, "", abs(ours.loss(batch).item() - true_loss), bound)
        error = abs(witness.loss(batch).item() - true_loss)
        ledger.require("loss", "float64", "", error, in_float64(bound, precision))

    # A power of two that gives gradients a size of about 1: for float16, and for the optimizers' epsilon.
    first = truth.gradients(batch)
    squares = sum(slope.square().sum().item() for slope in first.values())
    size = math.sqrt(squares / sum(slope.numel() for slope in first.values()))
    scale = 2.0 ** -round(math.log2(size))
    runs = [side.trained(batch, configuration.optimizer, scale) for side in sides]
    compare("gradients", [gradients for gradients, _ in runs], sizes_in_sublayers(runs[0][0]))
    compare(f"weights after {configuration.optimizer}", [weights for _, weights in runs])


def sizes_in_sublayers(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """For each parameter the largest norm of the gradients in its sublayer.

    A key's bias has no gradient but rounding, for a softmax does not feel what is added to all its scores;
    and where there is one key only, neither have queries and keys.
    """
    largest: dict[str, float] = defaultdict(float)
    for name, slope in gradients.items():
        sublayer = ".".join(name.split(".")[:-2])
        largest[sublayer] = max(largest[sublayer], slope.norm().item())
    return {name: largest[".".join(name.split(".")[:-2])] for name in gradients}


# -------------------------------------------------------------------------------------------- decoding


def prompts(configuration: Configuration) -> tuple[Tensor, Tensor]:
    """Ids and mask to answer or to continue, which GPT-2 can only where padding stands on the left."""
    batch = batch_of(configuration)
    ids, mask = batch.input_ids, batch.attention_mask
    if not configuration.is_t5:
        mask = mask.flip(1) if configuration.padding == "right" else mask
        mask = torch.ones_like(mask) if configuration.padding == "mixed" else mask
    return ids.masked_fill(mask == 0, PAD), mask


def check_greedy(
    configuration: Configuration, truth: Theirs, ours: Ours, largest: float, ledger: Ledger
) -> None:
    """In a precision the best two tokens may change places, but only where in truth they are as good as equal:
    both scores may be off by `largest`.
    """
    ids, mask = prompts(configuration)
    new = 5
    with ours.computing():
        chosen = generate(ours.model, ids, mask, max_new_tokens=new, eos_token_id=None, pad_token_id=PAD)
    if configuration.is_t5:
        read = Batch(ids, mask, chosen, chosen[:, :-1], torch.ones_like(chosen[:, :-1]))
    else:
        grown = torch.cat([mask, mask.new_ones(len(mask), new - 1)], 1)
        read = Batch(chosen[:, :-1], grown, chosen)
    logits = truth.logits(read)[:, -new:]
    taken = logits.gather(-1, chosen[:, -new:, None])[..., 0]
    regret = (logits.amax(-1) - taken).max().item()
    ledger.require("greedy choice", configuration.precision, "", regret, 2 * largest)


def check_decoding(configuration: Configuration, truth: Theirs, witness: Ours, ledger: Ledger) -> None:
    """In float64 no rounding changes a choice: the same ids, greedily, by beams and drawn; and, when drawing,
    from the same distributions.
    """
    r = random.Random(configuration.seed)
    ids, mask = prompts(configuration)
    options: dict[str, Any] = {
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "max_new_tokens": r.choice([1, 4, 7]),
    }
    if r.random() < 0.5:
        options |= {"no_repeat_ngram_size": r.choice([1, 2]), "repetition_penalty": r.choice([1.3, 0.8])}
    beams = {"num_beams": r.choice([2, 3]), "early_stopping": r.choice([True, False, "never"])}
    beams |= {"length_penalty": r.choice([0.6, 1.0, 2.0]), "num_return_sequences": 2}
    drawing = {"do_sample": True, "temperature": r.choice([0.7, 1.0, 1.5])} | r.choice(
        [{"top_k": 0}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.7}]
    )
    for quantity, chosen in {"greedy ids": {}, "beam ids": beams}.items():
        want, got = (
            theirs_generate(truth, ids, mask, options | chosen),
            generate(witness.model, ids, mask, **options | chosen),
        )
        ledger.require(
            quantity, "float64", f"{options | chosen}", float(got.tolist() != want.sequences.tolist()), 0.0
        )

    torch.manual_seed(configuration.seed)
    want = theirs_generate(truth, ids, mask, options | drawing)
    torch.manual_seed(configuration.seed)
    distributions: list[Tensor] = []
    with mock.patch.object(search, "apply_rules", keeping(search.apply_rules, distributions)):
        got = generate(witness.model, ids, mask, **options | drawing)
    named = f"{options | drawing}"
    ledger.require("sampled ids", "float64", named, float(got.tolist() != want.sequences.tolist()), 0.0)
    # The scores of both are float32, and a score's rounding moves its probability by its share.
    new = want.sequences[:, -len(want.scores) :]
    ended = torch.isin(new, torch.tensor(EOS)).cumsum(1) > 0
    for step, (mine, scores) in enumerate(zip(distributions, want.scores, strict=True)):
        if (
            step > 0
        ):  # nobody reads what comes after a row's end, and the two models are fed other tokens there
            mine, scores = mine[~ended[:, step - 1]], scores[~ended[:, step - 1]]
        bound = TIMES * ROUNDOFF["float32"] * max(1.0, scores[scores.isfinite()].abs().max().item())
        apart = (mine.softmax(-1) - scores.softmax(-1)).abs().max().item()
        ledger.require("distributions", "float64", named, apart, bound)

    # And what is drawn, many times over, has that distribution.
    generator = torch.Generator().manual_seed(configuration.seed)
    several = drawing | {"num_return_sequences": DRAWS, "max_new_tokens": 1, "generator": generator}
    tokens = generate(witness.model, ids[:1], mask[:1], **options | several)[:, -1]
    probability = chi_square(tokens.bincount(minlength=VOCAB), want.scores[0][0].double().softmax(-1))
    ledger.require("chi-square of draws", "float64", named, IMPROBABLE, probability)


def theirs_generate(truth: Theirs, ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Any:
    config = truth.model.config
    deeper = truth.is_t5 and config.num_decoder_layers > config.num_layers
    with truth.computing():
        return truth.model.generate(
            ids,
            attention_mask=mask,
            use_cache=not deeper,  # their cache has as many layers as the encoder
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )


def keeping(function: Any, results: list[Any]) -> Any:
    """`function`, whose results are also appended to a list."""

    def kept(*args: Any) -> Any:
        results.append(function(*args))
        return results[-1]

    return kept


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """The probability of counts at least as unlikely under these probabilities (Pearson's test).

    Tokens that are expected less than five times count as one; one that cannot come but did gives 0.
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
