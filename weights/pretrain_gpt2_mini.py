"""Train weights/gpt2-mini, a causal language model, on a stream of generated text.

    python weights/pretrain_gpt2_mini.py       # about 10 minutes on 2 cores

Half of the text is lines of examples/data/make_emotion.py (without its validation and test lines), every
other one after the prompt `Emotion: `; the other half is passages of examples/data/make_qa.py. The documents,
separated by <|endoftext|>, are concatenated and cut into rows of equal length. The training curve is written
to gpt2-mini/curve.jsonl.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch

from ftcore import load_tokenizer, save_model
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.training.loss import batch_loss
from ftcore.training.optim import adamw, learning_rate, set_learning_rate

WEIGHTS = Path(__file__).resolve().parent
DATA = WEIGHTS.parent / "examples" / "data"
sys.path.insert(0, str(DATA))

import make_emotion  # noqa: E402  (not in a package)
import make_qa  # noqa: E402

DIRECTORY = WEIGHTS / "gpt2-mini"
BATCH, ROW = 32, 128
PEAK, WARMUP = 3e-3, 100
LOG_EVERY = 50


def documents(rng: Random) -> Iterator[str]:
    held_out = set()
    for split in ("valid", "test"):
        held_out |= set((DATA / "emotion" / f"{split}.txt").read_text(encoding="utf-8").splitlines())
    while True:
        yield make_qa.story(rng).context
        for _ in range(6):  # as many tokens as the passage, approximately
            line = make_emotion.line(rng)
            if line not in held_out:
                yield rng.choice(["Emotion: ", ""]) + line.rpartition(";")[0]


def rows(texts: Iterator[str], tokenizer) -> Iterator[list[int]]:
    """Consecutive rows of ROW tokens."""
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer.encode(text), tokenizer.eos_id]
        while len(stream) >= ROW:
            yield stream[:ROW]
            stream = stream[ROW:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DIRECTORY, help="directory of the checkpoint")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the text and the initial weights")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    tokenizer = load_tokenizer(DIRECTORY)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size,
        n_positions=256,
        n_embd=128,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,  # no text is repeated, so the model cannot overfit
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_id,
        eos_token_id=tokenizer.eos_id,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = adamw(model, lr=PEAK, weight_decay=0.01)
    stream = rows(documents(Random(f"gpt2-mini {arguments.seed}")), tokenizer)
    arguments.output.mkdir(parents=True, exist_ok=True)
    started, losses = time.perf_counter(), []
    with (arguments.output / "curve.jsonl").open("w", encoding="utf-8") as curve:
        for step in range(arguments.steps):
            set_learning_rate(
                optimizer,
                learning_rate(
                    step, peak=PEAK, schedule="cosine", warmup_steps=WARMUP, total_steps=arguments.steps
                ),
            )
            input_ids = torch.tensor([next(stream) for _ in range(BATCH)])
            batch = {
                "input_ids": input_ids,
                "attention_mask": torch.ones_like(input_ids),
                "labels": input_ids,
            }
            loss = batch_loss(model, batch)
            mean = loss.total / loss.tokens
            mean.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

            losses.append(mean.item())
            if (step + 1) % LOG_EVERY == 0:
                seconds = round(time.perf_counter() - started)
                point = {
                    "step": step + 1,
                    "train_loss": round(sum(losses) / len(losses), 4),
                    "seconds": seconds,
                }
                curve.write(json.dumps(point) + "\n")
                curve.flush()
                print(point, flush=True)
                losses.clear()
    save_model(model.eval(), arguments.output)
    if arguments.output != DIRECTORY:
        tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
