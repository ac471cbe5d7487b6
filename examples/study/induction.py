"""Does gpt2-mini have induction heads?

    python examples/study/induction.py

An induction head finds the last occurrence of the present token and says what came after it (Olsson et
al. 2022). Random tokens said twice are the usual test: nothing else tells the second half. But gpt2-mini has
never met random tokens, so names that nobody has heard of are a second one: is a name easier to spell when it
comes again? And which heads are to thank?
"""

import argparse
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from ftcore import load_model, load_tokenizer
from ftcore.analysis.attention import attention_maps
from ftcore.analysis.figures import draw_head_field, new_figure, save_figure
from ftcore.analysis.heads import (
    copy_scores,
    head_ablation,
    induction_scores,
    prefix_matching_scores,
    repeated_tokens,
)
from ftcore.analysis.inputs import word_mask
from ftcore.analysis.tokens import token_losses

ROOT = Path(__file__).resolve().parents[2]
PASSAGES = 60
LENGTH = 25  # random tokens, said twice


def spellings(tokenizer, ids: list[int], text: str) -> tuple[Tensor, Tensor]:
    """(T) bool each: the tokens that spell a name on from its first token, for the first time and again."""
    first, again = (torch.zeros(len(ids), dtype=torch.bool) for _ in range(2))
    for name in set(re.findall(r"\b[A-Z][a-z]{5,}\b", text)):
        places = word_mask(tokenizer, ids, name)
        mentions = (
            torch.cat([places[:1].long(), places[1:].long() - places[:-1].long()]).eq(1).cumsum(0) * places
        )
        inside = places & torch.cat([torch.tensor([False]), places[:-1]])  # not the first token of a mention
        first |= inside & (mentions == 1)
        again |= inside & (mentions > 1)
    return first, again


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Does gpt2-mini have induction heads?")
    parser.add_argument("--model", default=str(ROOT / "weights" / "gpt2-mini"), help="a GPT-2")
    parser.add_argument("--out", default="runs/studies/induction.png")
    options = parser.parse_args(arguments)
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)

    random_ids = repeated_tokens(model.config.vocab_size, rows=16, length=LENGTH)
    losses = token_losses(model, {"input_ids": random_ids})
    once, twice = float(losses[:, : LENGTH - 1].mean()), float(losses[:, LENGTH:].mean())
    scores = induction_scores(model, rows=16, length=LENGTH)
    even = torch.ones(1, 16, 1, 2 * LENGTH, 2 * LENGTH).tril()
    even_score = float(prefix_matching_scores(even / even.sum(-1, keepdim=True), random_ids))

    test = json.loads((ROOT / "examples/data/qa/test.json").read_text(encoding="utf-8"))
    by_mention: dict[str, list[Tensor]] = {"first": [], "again": []}
    in_text, missed = [], []
    for passage in test["data"][0]["paragraphs"][:PASSAGES]:
        ids = tokenizer.encode(passage["context"])[: model.config.n_positions]
        inputs = {"input_ids": torch.tensor([ids])}
        first, again = spellings(tokenizer, ids, passage["context"])
        if not again.any():
            continue
        spelled = token_losses(model, inputs)[0]  # of all tokens but the first
        by_mention["first"].append(spelled[first[1:]])
        by_mention["again"].append(spelled[again[1:]])
        in_text.append(prefix_matching_scores(attention_maps(model, inputs)["decoder"], inputs["input_ids"]))

        def loss_again(logits: Tensor, ids: list[int] = ids, again: Tensor = again) -> Tensor:
            log_probs = logits[0, :-1].log_softmax(-1)
            return -log_probs.gather(1, torch.tensor(ids)[1:, None])[again[1:]].mean()

        missed.append(head_ablation(model, inputs, loss_again, mean=True, progress=False)["decoder"])
    first_time, later = (float(torch.cat(by_mention[when]).mean()) for when in ("first", "again"))
    found, lost = torch.stack(in_text).mean(0), torch.stack(missed).mean(0)
    copying = copy_scores(model)["decoder"]

    figure = new_figure(14, 3.2)
    panels = figure.subplots(1, 4)
    draw_head_field(panels[0], scores, "random tokens: prefix matching", high=1.0)
    draw_head_field(panels[1], found, "passages: prefix matching", high=1.0)
    draw_head_field(panels[2], copying, "copying: how positive are its eigenvalues", signed=True, high=1.0)
    title = "loss of names that come again, without it"
    draw_head_field(panels[3], lost, title, signed=True, high=float(lost.abs().max()))
    save_figure(figure, options.out)

    block, head = divmod(int(lost.argmax()), lost.shape[1])
    print(f"picture    {options.out}\n")
    print(
        "On random tokens no head of gpt2-mini is an induction head: the highest prefix-matching score is"
        f" {float(scores.max()):.3f}, even attention has {even_score:.3f}, and the second time they are no"
        f" easier ({once:.1f} nats per token, then {twice:.1f})."
    )
    print(
        f"Names that nobody has heard of cost {first_time:.2f} nats per token to spell for the first time,"
        f" from their second token on, and {later:.2f} when they come again: a little is picked up, but on"
        f" these passages too the highest prefix-matching score is {float(found.max()):.2f}."
    )
    print(
        f"Without head {head} of block {block} (its mean in its place) names that come again cost"
        f" {float(lost[block, head]):+.2f} nats, more than without any other; its copying score is"
        f" {float(copying[block, head]):+.2f}, and those of blocks 1 and 2 are between"
        f" {float(copying[1:].min()):+.2f} and {float(copying[1:].max()):+.2f}: no later head copies."
    )


if __name__ == "__main__":
    main()
