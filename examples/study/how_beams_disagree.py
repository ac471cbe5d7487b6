"""How does beam search differ from greedy search?

    python examples/study/how_beams_disagree.py

A T5 fine-tuned on question answering is searched with four beams, and all candidates are recorded. Does beam
search find answers that greedy search does not? If the best beam is wrong, is the correct answer among the
others? Does a small score margin predict a wrong answer?
"""

import argparse
import json
from pathlib import Path

import torch

from ftcore.analysis.beams import beam_trace, draw_beams
from ftcore.data.tasks import prompt
from ftcore.decoding import generate
from ftcore.figures import new_figure, save_figure
from ftcore.training.inputs import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = 200
SEARCH = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How does beam search differ from greedy search?")
    parser.add_argument("--model", default="weights/t5-mini-qa", help="a T5 fine-tuned on question answering")
    parser.add_argument("--out", default="runs/studies/how_beams_disagree.png")
    options = parser.parse_args(arguments)
    model, tokenizer = load_checkpoint(options.model)

    test = json.loads((ROOT / "examples/data/qa/test.json").read_text(encoding="utf-8"))
    asked = [
        (qa["question"], passage["context"], qa["answers"][0]["text"])
        for passage in test["data"][0]["paragraphs"]
        for qa in passage["qas"][1:2]
    ][:QUESTIONS]
    same, greedy_right, ranks, margins, traces = [], [], [], [], []
    for question, context, answer in asked:
        source = torch.tensor(
            [tokenizer.encode(prompt("qa", decoder_only=False, question=question, context=context))]
        )
        greedy = tokenizer.decode(generate(model, source, max_new_tokens=SEARCH["max_new_tokens"])[0])
        trace = beam_trace(model, source, **SEARCH)
        answers = [tokenizer.decode(trace.tokens(one)).lower() for one in trace.finished]
        same.append(answers[0] == greedy.lower())
        greedy_right.append(greedy.lower() == answer.lower())
        ranks.append(answers.index(answer.lower()) if answer.lower() in answers else None)
        margins.append(trace.finished[0].final_score - trace.finished[1].final_score)
        traces.append((margins[-1], question, answer, trace))

    of_right = torch.tensor([margin for margin, rank in zip(margins, ranks, strict=True) if rank == 0])
    of_wrong = torch.tensor([margin for margin, rank in zip(margins, ranks, strict=True) if rank != 0])
    auc = float((of_right[:, None] > of_wrong).float().mean())

    _, question, answer, trace = min(traces, key=lambda entry: entry[0])
    figure = new_figure(12, 7)
    upper, lower = figure.subfigures(2, 1, height_ratios=[2, 1])
    axes = upper.subplots()
    draw_beams(trace, lambda token: tokenizer.decode([token], skip_special_tokens=False), axes=axes)
    axes.set_title(f"smallest margin: {question}  gold: {answer}", fontsize=10, parse_math=False)
    axes = lower.subplots()
    bins = torch.linspace(0, max(margins), 30).tolist()
    axes.hist([of_right.tolist(), of_wrong.tolist()], bins=bins, stacked=True, label=["right", "wrong"])
    axes.set_xlabel("score margin of the best answer over the second")
    axes.set_ylabel("questions")
    axes.legend(frameon=False)
    save_figure(figure, options.out)

    wrong = [rank for rank in ranks if rank != 0]
    among = sum(rank is not None for rank in wrong)
    count = len(asked)
    print(f"picture    {options.out}\n")
    print(
        f"On {count} test questions, four beams give the same answer as greedy search in"
        f" {sum(same) / count:.1%}; greedy search is correct in {sum(greedy_right) / count:.1%}, the best"
        f" beam in {ranks.count(0) / count:.1%}."
    )
    print(
        f"Of the {len(wrong)} questions that the best beam answers wrong, the correct answer is among the"
        f" other three in {among}."
    )
    print(
        f"The median score margin of the best answer over the second is {float(of_right.median()):.2f} if it"
        f" is correct and {float(of_wrong.median()):.2f} if it is wrong; as a predictor of correctness, the"
        f" margin has an AUC of {auc:.0%} (chance: 50%)."
    )


if __name__ == "__main__":
    main()
