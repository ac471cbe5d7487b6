"""What did span corruption teach, before fine-tuning?

    python examples/study/what_span_corruption_taught.py

weights/t5-mini was pretrained by span corruption. Its input here is two sentences with a gap each, followed
by a passage about unseen people that has the missing words in another phrasing. Can it fill the gaps? Which
heads attend to the right words? And what does the same model do with a question?
"""

import argparse
import json
from pathlib import Path

import torch
from gapped_passages import filled, gapped_passages, inputs_of
from torch import Tensor

from ftcore import load_model, load_tokenizer
from ftcore.analysis.attention import attention_maps, attention_while_generating
from ftcore.analysis.figures import draw_head_field, draw_matrix
from ftcore.analysis.inputs import word_mask
from ftcore.data.tasks import prompt
from ftcore.figures import new_figure, save_figure
from ftcore.study import logit_lens

ROOT = Path(__file__).resolve().parents[2]
PASSAGES = 150


def hits(attention: Tensor, mask: Tensor) -> Tensor:
    """(L, H): whether the most attended token of each head (L, H, S) is in the mask (S)."""
    return mask[attention.argmax(-1)].float()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What did span corruption teach?")
    parser.add_argument("--model", default=str(ROOT / "weights" / "t5-mini"), help="a T5 that fills gaps")
    parser.add_argument("--out", default="runs/studies/what_span_corruption_taught.png")
    options = parser.parse_args(arguments)
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)

    right_with, right_without, in_gaps, by_block, chances = [], [], [], [], []
    for gapped in gapped_passages(tokenizer, PASSAGES):
        inputs, labels = inputs_of(model, gapped), torch.tensor([gapped.target])
        source = inputs["input_ids"]
        without = {**inputs, "input_ids": torch.cat([source[:, : gapped.passage], source[:, -1:]], 1)}
        right_with += filled(model, gapped)
        right_without += filled(model, gapped, without)
        maps = attention_maps(model, inputs)["cross"][:, 0]  # (L, H, T, S)
        ranks = logit_lens(model, source, decoder_input_ids=inputs["decoder_input_ids"])[:, 0].argmax(-1)
        in_passage = torch.arange(source.shape[1]) >= gapped.passage
        for first, last in gapped.gaps:
            right = labels[0, first:last]
            by_block.append((ranks[:, first:last] == right).float().mean(-1))
            mask = word_mask(tokenizer, gapped.source, tokenizer.decode(right)) & in_passage
            if mask.any():
                in_gaps.append(hits(maps[:, :, first:last].sum(2) * in_passage, mask))
                chances.append(float(mask.sum() / in_passage.sum()))

    test = json.loads((ROOT / "examples/data/qa/test.json").read_text(encoding="utf-8"))
    in_questions, answered = [], []
    for passage in test["data"][0]["paragraphs"][:PASSAGES]:
        question, answer = passage["qas"][0]["question"], passage["qas"][0]["answers"][0]["text"]
        text = prompt("qa", decoder_only=False, question=question, context=passage["context"])
        ids = tokenizer.encode(text)
        generated, maps = attention_while_generating(model, torch.tensor([ids]), max_new_tokens=12)
        answered.append(tokenizer.decode(generated[0]).lower() == answer.lower())
        begin = int(word_mask(tokenizer, ids, "context:").nonzero()[-1]) + 1
        in_passage = torch.arange(len(ids)) >= begin
        attention = maps["cross"][:, 0].sum(2) * in_passage
        in_questions.append(hits(attention, word_mask(tokenizer, ids, answer) & in_passage))

    gaps, questions = torch.stack(in_gaps).mean(0), torch.stack(in_questions).mean(0)
    lens = torch.stack(by_block).mean(0)
    figure = new_figure(12, 3.2)
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 0.6])
    draw_head_field(panels[0], gaps, "gaps: attends most to the missing words", high=1.0)
    draw_head_field(panels[1], questions, "questions: attends most to the answer", high=1.0)
    shares = [[f"{value:.0%}"] for value in lens.tolist()]
    rows = [f"after block {block}" for block in range(len(lens))]
    draw_matrix(panels[2], lens[:, None], rows=rows, columns=[""], texts=shares, high=1.0, bar=False)
    panels[2].set_title("logit lens: correct tokens", fontsize=9)
    save_figure(figure, options.out)

    def share(flags: list[bool]) -> float:
        return sum(flags) / len(flags)

    block, head = divmod(int(gaps.argmax()), gaps.shape[1])
    print(f"picture    {options.out}\n")
    print(
        f"With teacher forcing, it fills {share(right_with):.1%} of {len(right_with)} gaps correctly with the"
        f" passage and {share(right_without):.1%} without it: it copies from the passage."
    )
    print(
        f"Head {head} of block {block} attends most to the missing words in {float(gaps.max()):.1%} of the"
        f" gaps (a random token of the passage: {share(chances):.1%}); by the logit lens,"
        f" {float(lens[-2]):.0%} of the tokens are correct after the second to last block and"
        f" {float(lens[-1]):.0%} after the last."
    )
    print(
        f"It answers {share(answered):.1%} of the questions correctly, and the same head attends most to the"
        f" answer in {float(questions[block, head]):.1%}: fine-tuning has to teach what to attend to, and to"
        " answer without sentinels."
    )


if __name__ == "__main__":
    main()
