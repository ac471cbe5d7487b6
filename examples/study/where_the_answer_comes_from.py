"""Where does an answer come from?

    python examples/study/where_the_answer_comes_from.py

A T5 fine-tuned on question answering is tested on passages whose names it has never seen. The answer is a
span of the passage: which heads of the decoder attend to it? The heads are selected on validation passages
and evaluated on test passages. Editing the passages and patching activations then separates attention from
causal effect.
"""

import argparse
import json
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ftcore.analysis.attention import attention_while_generating
from ftcore.analysis.figures import draw_head_field
from ftcore.analysis.inputs import token_names, word_mask
from ftcore.analysis.patching import activation_patching, logit_difference
from ftcore.data.tasks import prompt
from ftcore.figures import new_figure, save_figure
from ftcore.training.inputs import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
QA = ROOT / "examples" / "data" / "qa"
PASSAGES = 200
PATCHED_PASSAGES = 25
BEHIND_ANOTHER = 60


class Question(NamedTuple):
    question: str
    context: str
    answer: str
    other: str | None  # answer to another question on the passage with the same first two words

    @property
    def swapped(self) -> "Question":
        """Swap the two answers in the passage: each becomes the answer to the other question."""
        context = self.context.replace(self.answer, "\0").replace(self.other, self.answer)
        return self._replace(context=context.replace("\0", self.other), answer=self.other, other=self.answer)


class Seen(NamedTuple):
    ids: list[int]
    attention: Tensor  # (L, H, S) of `cross` to each token of the passage, averaged over the answer's tokens
    is_answer: Tensor  # (S) bool: tokens of every occurrence of the answer in the passage
    is_right: bool

    def finds(self, heads: list[tuple[int, int]]) -> bool:
        """Whether the mean attention of these heads is highest at a token of the answer."""
        return bool(self.is_answer[self.attention_of(heads).argmax()])

    def attention_of(self, heads: list[tuple[int, int]]) -> Tensor:
        """(S) the mean of these heads."""
        return torch.stack([self.attention[head] for head in heads]).mean(0)


def first_questions(split: str) -> list[Question]:
    """The first question about each passage of a split."""
    chosen = []
    for passage in json.loads((QA / f"{split}.json").read_text(encoding="utf-8"))["data"][0]["paragraphs"]:
        (question, answer), *more = [(qa["question"], qa["answers"][0]["text"]) for qa in passage["qas"]]
        similar = [other for asked, other in more if asked.split()[:2] == question.split()[:2]]
        other = next((other for other in similar if other not in answer and answer not in other), None)
        chosen.append(Question(question, passage["context"], answer, other))
    return chosen[:PASSAGES]


class Reader:
    def __init__(self, directory: str):
        self.model, self.tokenizer = load_checkpoint(directory)

    def encode(self, question: Question) -> list[int]:
        text = prompt("qa", decoder_only=False, question=question.question, context=question.context)
        return self.tokenizer.encode(text)

    def see(self, question: Question) -> Seen:
        """Generate the answer, and record the cross-attention."""
        ids = self.encode(question)
        answers, maps = attention_while_generating(self.model, torch.tensor([ids]), max_new_tokens=12)
        begin = word_mask(self.tokenizer, ids, "context:").nonzero()[-1, 0] + 1
        in_passage = torch.arange(len(ids)) >= begin
        # Without the step that generates the end token, which attends to what follows the answer.
        steps = max(1, int((answers[0, 1:] != self.tokenizer.eos_id).sum()))
        attention = maps["cross"][:, 0, :, :steps].mean(2) * in_passage  # (L, H, S)
        prediction = self.tokenizer.decode(answers[0])
        is_answer = word_mask(self.tokenizer, ids, question.answer) & in_passage
        return Seen(ids, attention, is_answer, prediction.lower() == question.answer.lower())

    def share_restored(self, questions: list[Question]) -> Tensor:
        """(L, H): share of the logit difference that each head restores in the swapped passage."""
        shares = []
        for question in questions:
            clean, corrupted = self.encode(question), self.encode(question.swapped)
            right, wrong = (self.tokenizer.encode(text)[:1] for text in (question.answer, question.other))
            if len(clean) != len(corrupted) or right == wrong:
                continue  # patching requires aligned tokens
            start = torch.tensor([[self.model.config.decoder_start_token_id]])
            runs = [
                {"input_ids": torch.tensor([ids]), "decoder_input_ids": start} for ids in (clean, corrupted)
            ]
            metric = logit_difference(torch.tensor(right), torch.tensor(wrong))
            patched = activation_patching(
                self.model, *runs, metric, "cross.z.*", over=["heads"], progress=False
            )
            if patched.clean - patched.corrupted > 1:  # otherwise there is nothing to restore
                shares.append(patched.restored)
            if len(shares) == PATCHED_PASSAGES:
                break
        if not shares:
            raise ValueError("the model prefers no correct answer: pass one fine-tuned on question answering")
        return torch.stack(shares).mean(0)


def share(flags: list[bool]) -> float:
    return sum(flags) / max(1, len(flags))


def best_heads(seen: list[Seen]) -> list[tuple[int, int]]:
    """The one or two heads that find the answer most often together."""
    blocks, heads = seen[0].attention.shape[:2]
    single = [(block, head) for block in range(blocks) for head in range(heads)]
    choices = [list(choice) for size in (1, 2) for choice in combinations(single, size)]
    return max(choices, key=lambda choice: sum(one.finds(choice) for one in seen))


def draw_seen(axes, tokenizer, seen: Seen, heads: list[tuple[int, int]], title: str) -> None:
    attention = seen.attention_of(heads)
    shown = attention.nonzero()[:, 0].tolist()
    colours = ["C1" if seen.is_answer[position] else "C0" for position in shown]
    axes.bar(range(len(shown)), attention[shown], color=colours)
    names = token_names(tokenizer, [seen.ids[position] for position in shown])
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=6, parse_math=False)
    axes.margins(x=0.005)
    axes.set_ylabel("mean attention weight", fontsize=8)
    axes.set_title(title, fontsize=9)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Where does an answer come from?")
    parser.add_argument("--model", default="weights/t5-mini-qa", help="a T5 fine-tuned on question answering")
    parser.add_argument("--out", default="runs/studies/where_the_answer_comes_from.png")
    options = parser.parse_args(arguments)

    reader = Reader(options.model)
    validation = [reader.see(question) for question in first_questions("valid")]
    heads = best_heads(validation)
    named = " and ".join(f"head {head} of block {block}" for block, head in heads)

    questions = first_questions("test")
    seen = [reader.see(question) for question in questions]
    blocks, count = seen[0].attention.shape[:2]
    alone = torch.tensor(
        [
            [share([one.finds([(block, head)]) for one in seen]) for head in range(count)]
            for block in range(blocks)
        ]
    )

    pairs = [question for question in questions if question.other is not None]
    swapped = [reader.see(question.swapped) for question in pairs]
    behind_another = [
        reader.see(question._replace(context=f"{before.context} {question.context}"))
        for before, question in list(pairwise(questions))[:BEHIND_ANOTHER]
    ]
    restored = reader.share_restored(pairs)
    block, head = divmod(int(restored.argmax()), count)

    figure = new_figure(11, 8)
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.4])
    fields = upper.subplots(1, 2)
    title = f"share of {len(seen)} test passages in which it attends most to the answer"
    draw_head_field(fields[0], alone, title, high=1.0)
    title = "share of the logit difference that it restores alone"
    draw_head_field(fields[1], restored, title, signed=True, high=float(restored.abs().max()))
    example = max(range(len(pairs)), key=lambda i: swapped[i].is_right + swapped[i].finds(heads))
    panels = lower.subplots(2, 1)
    for axes, question in zip(panels, (pairs[example], pairs[example].swapped), strict=True):
        title = f"{question.question}  {question.answer} (orange).  Attention of {named}"
        draw_seen(axes, reader.tokenizer, reader.see(question), heads, title)
    save_figure(figure, options.out)

    finds = {True: [], False: []}  # by whether the model's answer is correct
    for one in seen:
        finds[one.is_right].append(one.finds(heads))
    chance = sum(float(one.is_answer.sum() / (one.attention[0, 0] > 0).sum()) for one in seen) / len(seen)
    print(f"picture    {options.out}\n")
    print(
        f"Selected on {len(validation)} validation passages, {named} of the cross-attention attend most to"
        f" the answer in {share(finds[True] + finds[False]):.1%} of {len(seen)} test passages; the best"
        f" single head, selected on the test passages, in {float(alone.max()):.1%}, and a random token of the"
        f" passage would be correct in {chance:.1%}."
    )
    print(
        f"They do so in {share(finds[True]):.1%} of the {len(finds[True])} passages whose question is"
        f" answered correctly and in {share(finds[False]):.1%} of the {len(finds[False])} others; if two"
        f" answers are swapped ({len(pairs)} passages), the model gives the other one in"
        f" {share([one.is_right for one in swapped]):.1%} and they attend to it in"
        f" {share([one.finds(heads) for one in swapped]):.1%}; after another passage they find it in"
        f" {share([one.finds(heads) for one in behind_another]):.1%} of {len(behind_another)}."
    )
    restored_shares = " and ".join(f"{float(restored[one]):.0%}" for one in heads)
    print(
        "Attention is not causation: patched alone into the passage with swapped answers, these heads restore"
        f" {restored_shares} of the logit difference, and head {head} of block {block} restores most,"
        f" {float(restored.max()):.0%}: no head carries the answer alone."
    )


if __name__ == "__main__":
    main()
