"""How does gpt2-mini continue a repetition? Its induction heads, and when in training they appeared.

    python examples/study/induction.py

An induction head attends to the token after the last occurrence of the current token and predicts it again
(Olsson et al. 2022). Attention alone cannot find that place, since its key depends on one position: a head of
an earlier block must have written there which token is before it. Both heads are found here on random tokens
that occur twice, whose second half only the repetition predicts. Ablation shows that they are necessary,
activation patching that what the first one writes reaches the second as keys, and path patching by which way.
"""

import argparse
import json
import re
from pathlib import Path
from textwrap import fill

import torch
from torch import Tensor

from ftcore import load_model, load_tokenizer
from ftcore.analysis.attention import attention_maps
from ftcore.analysis.figures import draw_head_field, draw_matrix
from ftcore.analysis.heads import (
    head_ablation,
    prefix_matching_scores,
    previous_token_scores,
    repeated_tokens,
)
from ftcore.analysis.inputs import word_mask
from ftcore.analysis.patching import Metric, activation_patching, logit_difference, path_patching
from ftcore.analysis.tokens import token_losses
from ftcore.figures import Axes, new_figure, save_figure
from ftcore.models import GPT2LMHeadModel

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "weights" / "gpt2-mini"
PASSAGES = 60
ROWS, LENGTH = 32, 25  # random tokens, repeated once
Head = tuple[int, int]  # block, head
Texts = tuple[dict[str, Tensor], dict[str, Tensor], Metric]  # clean, corrupted, metric
FORMED = 0.5  # a score from which a head counts as an induction head or a previous-token head


def loss_of(ids: Tensor, counted: Tensor) -> Metric:
    """A metric: mean loss of the `counted` tokens (T) of `ids` (B, T)."""

    def metric(logits: Tensor) -> Tensor:
        log_probs = logits[:, :-1].log_softmax(-1)
        return -log_probs.gather(2, ids[:, 1:, None])[:, counted[1:]].mean()

    return metric


def with_and_without_repetition(ids: Tensor) -> Texts:
    """A clean and a corrupted text, and the metric of the prediction after them.

    The text ends in the middle of the second half. In the corrupted one the last token occurs only there, so
    that no earlier token tells what follows.
    """
    before = LENGTH // 2  # position of the last token's first occurrence
    clean = ids[:, : LENGTH + before + 1]
    corrupted = clean.clone()
    corrupted[:, before] = ids.roll(1, 0)[:, before]  # the token of another row
    predicted = logit_difference(right=ids[:, before + 1], wrong=ids[:, before + 2])
    return {"input_ids": clean}, {"input_ids": corrupted}, predicted


def paths(model: GPT2LMHeadModel, texts: Texts, block: int, keys: int) -> dict[str, Tensor]:
    """The share of the prediction that each head of a block restores, (H), by what reads its clean output."""
    heads = f"z.{block}"
    everywhere = activation_patching(model, *texts, heads, over=["heads"], progress=False)
    by_mlp = path_patching(model, *texts, heads, f"transformer.h.{block}.mlp@in", progress=False)
    by_keys = path_patching(model, *texts, heads, f"k.{keys}", progress=False)
    shares = {
        "read by all later layers": everywhere,
        f"read by the feed-forward layer of block {block} only": by_mlp,
        f"read by the keys of block {keys} only": by_keys,
    }
    return {reader: patched.restored[0] for reader, patched in shares.items()}


def repeated_names(tokenizer, ids: list[int], text: str) -> Tensor:
    """A mask (T) of the tokens of names that occurred before, without the first token of each name."""
    again = torch.zeros(len(ids), dtype=torch.bool)
    for name in set(re.findall(r"\b[A-Z][a-z]{5,}\b", text)):
        in_name = word_mask(tokenizer, ids, name)
        is_start = in_name & ~torch.cat([torch.tensor([False]), in_name[:-1]])
        again |= in_name & ~is_start & (is_start.cumsum(0) > 1)
    return again


def ablation_on_names(model: GPT2LMHeadModel, tokenizer) -> tuple[float, Tensor]:
    """On repeated names in test passages: the mean loss, and its change without each head (L, H)."""
    losses, changes = [], []
    test = json.loads((ROOT / "examples/data/qa/test.json").read_text(encoding="utf-8"))
    for passage in test["data"][0]["paragraphs"][:PASSAGES]:
        ids = tokenizer.encode(passage["context"])[: model.config.n_positions]
        again = repeated_names(tokenizer, ids, passage["context"])
        if again.any():
            inputs = {"input_ids": torch.tensor([ids])}
            loss = loss_of(inputs["input_ids"], again)
            losses.append(token_losses(model, inputs)[0, again[1:]].mean())
            changes.append(head_ablation(model, inputs, loss, mean=True, progress=False)["decoder"])
    return float(torch.stack(losses).mean()), torch.stack(changes).mean(0)


def strongest(scores: Tensor) -> Head:
    """The head with the highest score, of (L, H)."""
    block, head = divmod(int(scores.argmax()), scores.shape[1])
    return block, head


def draw_training(axes: Axes, curve: list[dict], previous: Head, induction: Head) -> None:
    """Draw both heads' scores and the losses of both halves during training."""
    steps = [point["step"] for point in curve]
    for name, (block, head) in (("previous_token", previous), ("prefix_matching", induction)):
        scores = [point[name][block][head] for point in curve]
        axes.plot(steps, scores, label=f"{name.replace('_', ' ')}, head {block}.{head}")
    axes.set_ylim(0, 1)
    axes.set_xlabel("step of training", fontsize=8)
    losses = axes.twinx()
    for name, style in (("first_half", ":"), ("second_half", "-")):
        label = f"loss, {name.replace('_', ' ')}"
        losses.plot(steps, [point[name] for point in curve], color="0.5", ls=style, lw=1, label=label)
    losses.set_ylim(0)
    losses.set_ylabel("nats per token", fontsize=8)
    for side in (axes, losses):
        side.tick_params(labelsize=7)
    lines = axes.get_lines() + losses.get_lines()
    labels = [line.get_label() for line in lines]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "ncols": 2}
    axes.legend(lines, labels, frameon=False, fontsize=7, **below)
    axes.set_title("random tokens, during training", fontsize=9)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How does gpt2-mini continue a repetition?")
    parser.add_argument("--out", default="runs/studies/induction.png")
    options = parser.parse_args(arguments)
    model, tokenizer = load_model(MODEL), load_tokenizer(MODEL)
    curve = [json.loads(line) for line in (MODEL / "curve.jsonl").read_text(encoding="utf-8").splitlines()]

    ids = repeated_tokens(model.config.vocab_size, rows=ROWS, length=LENGTH)
    inputs = {"input_ids": ids}
    losses = token_losses(model, inputs)
    first_half, second_half = float(losses[:, : LENGTH - 1].mean()), float(losses[:, LENGTH:].mean())
    maps = attention_maps(model, inputs)["decoder"]
    matching = prefix_matching_scores(maps, ids)
    block, head = induction = strongest(matching)
    to_previous = previous_token_scores(maps)
    previous = strongest(to_previous[:block])
    ablated = head_ablation(
        model, inputs, loss_of(ids, torch.arange(2 * LENGTH) > LENGTH), mean=True, progress=False
    )
    without = ablated["decoder"]
    texts = with_and_without_repetition(ids)
    restored = paths(model, texts, previous[0], block)
    by_keys = float(activation_patching(model, *texts, f"k.{block}", progress=False).restored)
    names_loss, names_without = ablation_on_names(model, tokenizer)

    figure = new_figure(12, 6)
    panels = figure.subplots(2, 3).flatten()
    draw_training(panels[0], curve, previous, induction)
    draw_head_field(panels[1], to_previous, "attention to the previous token", high=1.0)
    draw_head_field(panels[2], matching, "attention to the token after an earlier occurrence", high=1.0)
    shares = torch.stack(list(restored.values()))
    draw_matrix(
        panels[3],
        shares,
        rows=[fill(reader, 24) for reader in restored],
        columns=[f"head {number}" for number in range(shares.shape[1])],
        texts=[[f"{value:.2f}" for value in line] for line in shares.tolist()],
        signed=True,
        high=1.0,
        bar=False,
    )
    panels[3].set_title(f"share of the prediction restored by a head of block {previous[0]}", fontsize=9)
    title = "loss increase in the second half, head ablated"
    draw_head_field(panels[4], without, title, signed=True, high=float(without.abs().max()))
    title = "loss increase on repeated names, head ablated"
    draw_head_field(panels[5], names_without, title, signed=True, high=float(names_without.abs().max()))
    save_figure(figure, options.out)

    first_steps = [
        next(point["step"] for point in curve if point[name][one[0]][one[1]] >= FORMED)
        for name, one in (("previous_token", previous), ("prefix_matching", induction))
    ]
    print(f"picture    {options.out}\n")
    print(
        f"Random tokens cost {first_half:.1f} nats each and {second_half:.1f} when they are repeated:"
        f" {int((matching >= FORMED).sum())} heads have a prefix-matching score of {FORMED} or more, up to"
        f" {float(matching.max()):.2f} (head {head} of block {block}); it passed {FORMED} at step"
        f" {first_steps[1]} of training, and attention to the previous token by head {previous[1]} of block"
        f" {previous[0]} at step {first_steps[0]}."
    )
    print(
        f"Mean ablation of that previous-token head adds {float(without[previous]):.2f} nats to a repeated"
        f" token, that of the induction head {float(without[induction]):.2f}; patched into a text without the"
        " repetition, the output of the first restores the prediction to "
        + ", ".join(f"{float(share[previous[1]]):.0%} if {reader}" for reader, share in restored.items())
        + f"; the keys of block {block} alone restore it to {by_keys:.0%}."
    )
    print(
        f"They serve on text too: after its first token, a name that occurred before costs {names_loss:.2f}"
        f" nats per token, {float(names_without[induction]):+.2f} without the induction head and"
        f" {float(names_without[previous]):+.2f} without the previous-token head."
    )


if __name__ == "__main__":
    main()
