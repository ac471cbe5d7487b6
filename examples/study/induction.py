"""Does gpt2-mini have induction heads?

    python examples/study/induction.py

An induction head attends to the token after the last occurrence of the current token and predicts it again
(Olsson et al. 2022). The usual test is a repeated sequence of random tokens, whose second half only the
repetition predicts. But random tokens are out of distribution for gpt2-mini, so invented names are a second
test: is a name easier to predict when it is repeated? And which heads cause that?
"""

import argparse
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from ftcore import load_model, load_tokenizer
from ftcore.analysis.attention import attention_maps
from ftcore.analysis.figures import draw_head_field
from ftcore.analysis.heads import (
    copy_scores,
    head_ablation,
    induction_scores,
    prefix_matching_scores,
    repeated_tokens,
)
from ftcore.analysis.inputs import word_mask
from ftcore.analysis.tokens import token_losses
from ftcore.figures import new_figure, save_figure

ROOT = Path(__file__).resolve().parents[2]
PASSAGES = 60
LENGTH = 25  # random tokens, repeated once


def spellings(tokenizer, ids: list[int], text: str) -> tuple[Tensor, Tensor]:
    """Masks (T) of the tokens of names after their first token: at the first mention, and at later ones."""
    first, again = (torch.zeros(len(ids), dtype=torch.bool) for _ in range(2))
    for name in set(re.findall(r"\b[A-Z][a-z]{5,}\b", text)):
        in_name = word_mask(tokenizer, ids, name)
        is_start = in_name & ~torch.cat([torch.tensor([False]), in_name[:-1]])
        mentions = is_start.cumsum(0) * in_name  # number of the mention that a token belongs to
        inside = in_name & ~is_start
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
    first_half, second_half = float(losses[:, : LENGTH - 1].mean()), float(losses[:, LENGTH:].mean())
    scores = induction_scores(model, rows=16, length=LENGTH)
    uniform = torch.ones(1, 16, 1, 2 * LENGTH, 2 * LENGTH).tril()
    uniform_score = float(prefix_matching_scores(uniform / uniform.sum(-1, keepdim=True), random_ids))

    test = json.loads((ROOT / "examples/data/qa/test.json").read_text(encoding="utf-8"))
    by_mention: dict[str, list[Tensor]] = {"first": [], "again": []}
    in_text, changes = [], []
    for passage in test["data"][0]["paragraphs"][:PASSAGES]:
        ids = tokenizer.encode(passage["context"])[: model.config.n_positions]
        inputs = {"input_ids": torch.tensor([ids])}
        first, again = spellings(tokenizer, ids, passage["context"])
        if not again.any():
            continue
        losses = token_losses(model, inputs)[0]  # of all tokens but the first
        by_mention["first"].append(losses[first[1:]])
        by_mention["again"].append(losses[again[1:]])
        in_text.append(prefix_matching_scores(attention_maps(model, inputs)["decoder"], inputs["input_ids"]))

        def loss_again(logits: Tensor, ids: list[int] = ids, again: Tensor = again) -> Tensor:
            log_probs = logits[0, :-1].log_softmax(-1)
            return -log_probs.gather(1, torch.tensor(ids)[1:, None])[again[1:]].mean()

        changes.append(head_ablation(model, inputs, loss_again, mean=True, progress=False)["decoder"])
    first_loss, again_loss = (float(torch.cat(by_mention[when]).mean()) for when in ("first", "again"))
    found, change = torch.stack(in_text).mean(0), torch.stack(changes).mean(0)
    copying = copy_scores(model)["decoder"]

    figure = new_figure(14, 3.2)
    panels = figure.subplots(1, 4)
    draw_head_field(panels[0], scores, "random tokens: prefix matching", high=1.0)
    draw_head_field(panels[1], found, "passages: prefix matching", high=1.0)
    draw_head_field(panels[2], copying, "copying scores", signed=True, high=1.0)
    title = "loss increase on repeated names, head ablated"
    draw_head_field(panels[3], change, title, signed=True, high=float(change.abs().max()))
    save_figure(figure, options.out)

    block, head = divmod(int(change.argmax()), change.shape[1])
    print(f"picture    {options.out}\n")
    print(
        "On random tokens no head of gpt2-mini is an induction head: the highest prefix-matching score is"
        f" {float(scores.max()):.3f}, that of uniform attention is {uniform_score:.3f}, and the loss does not"
        f" decrease with repetition ({first_half:.1f} nats per token, then {second_half:.1f})."
    )
    print(
        f"After its first token, an invented name costs {first_loss:.2f} nats per token at the first mention"
        f" and {again_loss:.2f} at later ones: repetition helps a little, but on these passages too the"
        f" highest prefix-matching score is {float(found.max()):.2f}."
    )
    print(
        f"Mean ablation of head {head} of block {block} changes the loss on repeated names most, by"
        f" {float(change[block, head]):+.2f} nats; its copying score is {float(copying[block, head]):+.2f},"
        f" and those of blocks 1 and 2 are between {float(copying[1:].min()):+.2f} and"
        f" {float(copying[1:].max()):+.2f}: no later head copies."
    )


if __name__ == "__main__":
    main()
