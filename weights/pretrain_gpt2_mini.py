"""Train weights/gpt2-mini, a causal language model, on a stream of generated text.

    python weights/pretrain_gpt2_mini.py       # about 15 minutes on one core

The text is passages of examples/data/make_qa.py, lines of examples/data/make_emotion.py (without its
validation and test lines), every other one after the prompt `Emotion: `, and roll calls. These are there for
induction heads, which predict that what followed a token before follows it again. Language models develop
them because real text repeats itself (Olsson et al. 2022); these passages and messages repeat a few names
only. A roll call mentions a handful of invented names, of two to four tokens, again and again in random
order: within a name, the next token follows from an earlier mention and from nothing else. Its tokens have
Zipf's frequencies, as words of real text do (Chan et al. 2022).

The documents, separated by <|endoftext|>, are concatenated and cut into rows of equal length. Rows are short
at first (Press et al. 2021): attention is uniform at initialization, and then gives each token more weight.
The training curve is written to gpt2-mini/curve.jsonl, with scores of all heads on random tokens that occur
twice, which show when the induction heads appear.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from ftcore import load_tokenizer, save_model
from ftcore.analysis.attention import attention_maps
from ftcore.analysis.heads import prefix_matching_scores, previous_token_scores, repeated_tokens
from ftcore.analysis.tokens import token_losses
from ftcore.data.tokenizer import Tokenizer
from ftcore.models import GPT2Config, GPT2LMHeadModel
from ftcore.training.loss import batch_loss
from ftcore.training.optim import adamw, learning_rate, set_learning_rate

WEIGHTS = Path(__file__).resolve().parent
DATA = WEIGHTS.parent / "examples" / "data"
sys.path.insert(0, str(DATA))

import make_emotion  # noqa: E402  (not in a package)
import make_qa  # noqa: E402

DIRECTORY = WEIGHTS / "gpt2-mini"
PEAK, WARMUP, BETAS = 2e-3, 100, (0.9, 0.98)
MESSAGES = 6  # for each passage
ROLL_CALL = 40  # least number of tokens
MEASURED = 15  # random tokens, repeated once: they fit into a short row
LOG_EVERY = 25


class Stage(NamedTuple):
    steps: int
    rows: int  # of a batch
    length: int  # tokens of a row
    roll_calls: int  # for each passage


# Few roll calls keep the induction heads, once they have appeared.
STAGES = (Stage(1000, 64, 32, 3), Stage(1600, 16, 256, 1))


def documents(tokenizer: Tokenizer, roll_calls: int, rng: Random) -> Iterator[list[int]]:
    held_out = set()
    for split in ("valid", "test"):
        held_out |= set((DATA / "emotion" / f"{split}.txt").read_text(encoding="utf-8").splitlines())
    tokens = rng.sample(range(tokenizer.eos_id), tokenizer.eos_id)
    frequencies = list(accumulate(1 / rank for rank in range(1, len(tokens) + 1)))
    while True:
        yield tokenizer.encode(make_qa.story(rng).context)
        for _ in range(MESSAGES):
            line = make_emotion.line(rng)
            if line not in held_out:
                yield tokenizer.encode(rng.choice(["Emotion: ", ""]) + line.rpartition(";")[0])
        for _ in range(roll_calls):
            yield roll_call(tokens, frequencies, rng)


def roll_call(tokens: list[int], frequencies: list[float], rng: Random) -> list[int]:
    """Names of different tokens in random order, none of them twice in a row; frequencies are cumulative."""
    lengths = [rng.randint(2, 4) for _ in range(rng.randint(2, 5))]
    chosen: set[int] = set()
    while len(chosen) < sum(lengths):
        chosen |= set(rng.choices(tokens, cum_weights=frequencies))
    shuffled = rng.sample(sorted(chosen), len(chosen))
    names = [shuffled[end - length : end] for length, end in zip(lengths, accumulate(lengths), strict=True)]
    mentions = [rng.choice(names)]
    while sum(map(len, mentions)) < ROLL_CALL:
        mentions.append(rng.choice([name for name in names if name is not mentions[-1]]))
    return [token for name in mentions for token in name]


def batches(tokenizer: Tokenizer, rng: Random) -> Iterator[Tensor]:
    """Consecutive rows of the text of each stage: (B, T)."""
    for stage in STAGES:
        texts = documents(tokenizer, stage.roll_calls, rng)
        stream: list[int] = []
        size = stage.rows * stage.length
        for _ in range(stage.steps):
            while len(stream) < size:
                stream += [*next(texts), tokenizer.eos_id]
            yield torch.tensor(stream[:size]).view(stage.rows, stage.length)
            del stream[:size]


def new_model(tokenizer: Tokenizer) -> GPT2LMHeadModel:
    """0.8 M parameters. The positions start as sinusoids, for which the previous one is a rotation away."""
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size,
        n_positions=256,
        n_embd=128,
        n_layer=3,
        n_head=4,
        initializer_range=0.05,  # GPT-2's 0.02, times the square root of 768 / 128
        resid_pdrop=0.0,  # no text is repeated, so the model cannot overfit
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_id,
        eos_token_id=tokenizer.eos_id,
    )
    model = GPT2LMHeadModel(config)
    frequencies = torch.pi * (torch.arange(64) + 0.5) / 64
    angles = torch.arange(256)[:, None] * frequencies
    model.transformer.wpe.weight.data = 0.1 * torch.cat([angles.sin(), angles.cos()], dim=1)
    return model


def induction(model: GPT2LMHeadModel) -> dict[str, float | list[list[float]]]:
    """Mean loss of random tokens and of their repetition, and two scores of each head, (L, H)."""
    ids = repeated_tokens(model.config.vocab_size, rows=32, length=MEASURED)
    losses = token_losses(model, {"input_ids": ids})
    maps = attention_maps(model, {"input_ids": ids})["decoder"]
    return {
        "first_half": round(float(losses[:, : MEASURED - 1].mean()), 3),
        "second_half": round(float(losses[:, MEASURED:].mean()), 3),
        "previous_token": rounded(previous_token_scores(maps)),
        "prefix_matching": rounded(prefix_matching_scores(maps, ids)),
    }


def rounded(scores: Tensor) -> list[list[float]]:
    return [[round(score, 3) for score in block] for block in scores.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DIRECTORY, help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of the text and the initial weights")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    tokenizer = load_tokenizer(DIRECTORY)
    model = new_model(tokenizer).train()
    optimizer = adamw(model, lr=PEAK, weight_decay=0.01)
    for group in optimizer.param_groups:
        group["betas"] = BETAS
    total_steps = sum(stage.steps for stage in STAGES)
    arguments.output.mkdir(parents=True, exist_ok=True)
    started, losses = time.process_time(), []
    with (arguments.output / "curve.jsonl").open("w", encoding="utf-8") as curve:
        for step, input_ids in enumerate(batches(tokenizer, Random(f"gpt2-mini {arguments.seed}"))):
            lr = learning_rate(
                step, peak=PEAK, schedule="cosine", warmup_steps=WARMUP, total_steps=total_steps
            )
            set_learning_rate(optimizer, lr)
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
                point = {
                    "step": step + 1,
                    "train_loss": round(sum(losses) / len(losses), 4),
                    "cpu_seconds": round(time.process_time() - started),
                    **induction(model),
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
