"""How do beams disagree?

    python examples/study/how_beams_disagree.py

Beam search keeps several answers and returns one. Here a T5 that learnt to answer questions is searched with
four beams, and every candidate is kept: does the search find what greedy search does not, where is the right
answer when the best beam is wrong, and does a close race tell that the answer is wrong?
"""

import argparse
import json
from pathlib import Path

import torch

from ftcore.analysis.beams import beam_trace, plot_beams
from ftcore.analysis.figures import new_figure, save_figure
from ftcore.data.tasks import prompt
from ftcore.decoding import generate
from ftcore.training.inputs import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = 200
SEARCH = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How do beams disagree?")
    parser.add_argument("--model", default="weights/t5-mini-qa", help="a T5 that answers questions")
    parser.add_argument("--out", default="runs/studies/how_beams_disagree.png")
    options = parser.parse_args(arguments)
    model, tokenizer = load_checkpoint(options.model)

    test = json.loads((ROOT / "examples/data/qa/test.json").read_text(encoding="utf-8"))
    asked = [
        (qa["question"], passage["context"], qa["answers"][0]["text"])
        for passage in test["data"][0]["paragraphs"]
        for qa in passage["qas"][1:2]
    ][:QUESTIONS]
    same, greedy_right, ranks, leads, races = [], [], [], [], []
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
        leads.append(trace.finished[0].final_score - trace.finished[1].final_score)
        races.append((leads[-1], question, answer, trace))

    of_right = torch.tensor([lead for lead, rank in zip(leads, ranks, strict=True) if rank == 0])
    of_wrong = torch.tensor([lead for lead, rank in zip(leads, ranks, strict=True) if rank != 0])
    tells_apart = float((of_right[:, None] > of_wrong).float().mean())

    _, question, answer, trace = min(races, key=lambda race: race[0])
    figure = new_figure(12, 7)
    upper, lower = figure.subfigures(2, 1, height_ratios=[2, 1])
    axes = upper.subplots()
    plot_beams(axes, trace, lambda token: tokenizer.decode([token], skip_special_tokens=False))
    axes.set_title(f"the closest race: {question}  gold: {answer}", fontsize=10, parse_math=False)
    axes = lower.subplots()
    bins = torch.linspace(0, max(leads), 30).tolist()
    axes.hist([of_right.tolist(), of_wrong.tolist()], bins=bins, stacked=True, label=["right", "wrong"])
    axes.set_xlabel("lead of the best answer over the second, in score")
    axes.set_ylabel("questions")
    axes.legend(frameon=False)
    save_figure(figure, options.out)

    wrong = [rank for rank in ranks if rank != 0]
    among = sum(rank is not None for rank in wrong)
    count = len(asked)
    print(f"picture    {options.out}\n")
    print(
        f"On {count} test questions four beams say the same as greedy search in {sum(same) / count:.1%};"
        f" greedy search is right in {sum(greedy_right) / count:.1%}, the best beam in"
        f" {ranks.count(0) / count:.1%}."
    )
    print(
        f"Of the {len(wrong)} questions that the best beam answers wrong, the right answer is among the other"
        f" three in {among}."
    )
    print(
        f"The best answer leads the second by {float(of_right.median()):.2f} in the median where it is right"
        f" and by {float(of_wrong.median()):.2f} where it is wrong; a right one leads by more than a wrong"
        f" one in {tells_apart:.0%} of all pairs, where 50% would mean that the lead tells nothing."
    )


if __name__ == "__main__":
    main()
