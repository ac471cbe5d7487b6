"""Pretrain weights/t5-mini by span corruption on passages that are invented as it goes, none of them twice.

    python weights/pretrain_t5_mini.py         # about an hour on 2 cores

The model never sees a question. But its passages (examples/data/make_qa.py) tell every fact twice, in
different words, so a span that is cut out here can be read there: to fill the gap in "Mirela has a house in
<extra_id_0>" it has to find the other sentence that says where Mirela lives. Reading comprehension needs just
this, and fine-tuning only has to teach what a question looks like. The curve goes to t5-mini/curve.jsonl.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from ftcore import load_tokenizer, save_model
from ftcore.data.loader import IGNORED_LABEL, pad_rows
from ftcore.data.span_corruption import corrupt_spans, cut_spans
from ftcore.data.tokenizer import Tokenizer
from ftcore.models import T5Config, T5ForConditionalGeneration
from ftcore.training.loss import batch_loss

WEIGHTS = Path(__file__).resolve().parent
sys.path.insert(0, str(WEIGHTS.parent / "examples" / "data"))

import make_qa  # noqa: E402  (it lies beside its data, not in a package)

DIRECTORY = WEIGHTS / "t5-mini"
BATCH = 64
NOISE_DENSITY = 0.2
WARMUP = 100  # steps
COOL_DOWN = 0.25  # share of all steps in which the learning rate falls to 0
LOG_EVERY = 50


@dataclass(frozen=True)
class Stage:
    until: int  # step
    shapes: tuple[tuple[int, int], ...]  # subjects and kinds of facts, see make_qa.story
    mean_span_length: float | None  # None: the spans are names and values instead of random ones
    lr: float  # relative to the size of each tensor, see `scale_learning_rates`


# Each stage begins with what the model finds out soonest, and the next grows from it. Gaps of one or two
# tokens in passages of four sentences teach it to look up a missing piece of a name that stands elsewhere.
# Random gaps in longer passages make that robust, but leave it guessing between the people of a passage:
# little of what is asked for there depends on whose it is. Gaps that are names and values (salient spans: Guu
# et al. 2020, REALM) ask for nothing else.
ONE_KIND = ((2, 1),)
ALL_KINDS = ((2, 1), (2, 2), (2, 3), (3, 2))
STAGES = (
    Stage(500, ONE_KIND, 3.0, 1.0e-2),
    Stage(1700, ONE_KIND, 1.5, 1.5e-2),
    Stage(2000, ALL_KINDS, 1.5, 1.5e-2),
    Stage(3000, ALL_KINDS, 3.0, 1.2e-2),
    Stage(4000, ONE_KIND, 1.2, 1.5e-2),
    Stage(5000, ALL_KINDS, 2.0, 1.2e-2),
    Stage(6400, ((2, 1), (2, 1), (2, 2)), None, 1.2e-2),
    Stage(7500, ((2, 1), (2, 2), (2, 2), (2, 3), (3, 1)), None, 1.2e-2),
)


def corrupt(
    told: make_qa.Story,
    mean_span_length: float | None,
    tokenizer: Tokenizer,
    rng: Random,
    noise: np.random.Generator,
) -> tuple[list[int], list[int]]:
    """A story as (source, target), both with </s>."""
    ids = tokenizer.encode(told.context)[:-1]
    special = {"sentinel_id": tokenizer.sentinel_id, "eos_id": tokenizer.eos_id}
    if mean_span_length is None:
        return cut_spans(ids, salient_spans(told, ids, tokenizer, rng), **special)
    return corrupt_spans(
        ids, noise, noise_density=NOISE_DENSITY, mean_span_length=mean_span_length, **special
    )


def salient_spans(told: make_qa.Story, ids: list[int], tokenizer: Tokenizer, rng: Random) -> np.ndarray:
    """A mask (length,) with one mention of the subject or of a value of each statement."""
    mask = np.zeros(len(ids), dtype=bool)
    for statement in told.statements:
        mentions = [statement.subject.name, *(statement.values[slot] for slot in statement.fact.values)]
        mention = rng.choice(mentions).removeprefix("the ")
        piece = tokenizer.encode(mention)[:-1]
        places = [i for i in range(1, len(ids)) if ids[i : i + len(piece)] == piece]
        if places:
            start = rng.choice(places)
            around = mask[start - 1 : start + len(piece) + 1]
            if not around.any():  # spans must not touch, or they would be one
                mask[start : start + len(piece)] = True
    return mask


def examples(stage: Stage, tokenizer: Tokenizer, rng: Random, noise: np.random.Generator) -> list[tuple]:
    """16 batches of (source, target), sorted by length so that little of a batch is padding."""
    stories = [make_qa.story(rng, shape=rng.choice(stage.shapes), restated=1.0) for _ in range(16 * BATCH)]
    pairs = [corrupt(told, stage.mean_span_length, tokenizer, rng, noise) for told in stories]
    return sorted(pairs, key=lambda pair: len(pair[0]))


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Pairs of learning rate and batch, until the last stage ends."""
    rng, noise, step = Random(f"t5-mini {seed}"), np.random.default_rng(seed), 0
    for stage in STAGES:
        while step < stage.until:
            rows = examples(stage, tokenizer, rng, noise)
            chunks = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
            rng.shuffle(chunks)
            for chunk in chunks[: stage.until - step]:
                sources, targets = zip(*chunk, strict=True)
                yield (
                    stage.lr,
                    {
                        "input_ids": pad_rows(sources, tokenizer.pad_id),
                        "attention_mask": pad_rows([[1] * len(source) for source in sources], 0),
                        "labels": pad_rows(targets, IGNORED_LABEL),
                    },
                )
                step += 1


def scale_learning_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Make each tensor's step relative to its root mean square (Shazeer and Stern 2018, section 8).

    T5 needs it: its embedding starts at 1 and its queries at 1/sqrt(D K), 60 times smaller. A step that moves
    the one at all throws the other about, attention saturates, and the model never learns to look.
    """
    for group in optimizer.param_groups:
        (parameter,) = group["params"]
        group["lr"] = lr * max(1e-3, parameter.detach().square().mean().sqrt().item())


def new_model(tokenizer: Tokenizer) -> T5ForConditionalGeneration:
    """1.3 M parameters: v1.0's head, tied and scaled, which saves a table, and v1.1's gated gelu."""
    config = T5Config(
        vocab_size=tokenizer.vocab_size,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,  # no passage comes twice, so there is nothing to overfit
        decoder_start_token_id=tokenizer.pad_id,
    )
    return T5ForConditionalGeneration(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DIRECTORY, help="where the checkpoint goes")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the passages and the random weights")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    tokenizer = load_tokenizer(DIRECTORY)
    model = new_model(tokenizer).train()
    optimizer = torch.optim.AdamW(
        [{"params": [parameter]} for parameter in model.parameters()], weight_decay=0.0, fused=True
    )
    total_steps = STAGES[-1].until
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.output != DIRECTORY:
        tokenizer.save_pretrained(arguments.output)

    started, total, correct, tokens = time.perf_counter(), 0.0, 0, 0
    with (arguments.output / "curve.jsonl").open("w", encoding="utf-8") as curve:
        for step, (lr, batch) in enumerate(batches(tokenizer, arguments.seed)):
            warm = min(1.0, (step + 1) / WARMUP)
            cool = min(1.0, (total_steps - step) / (COOL_DOWN * total_steps))
            scale_learning_rates(optimizer, lr * warm * cool)
            loss = batch_loss(model, batch)
            (loss.total / loss.tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

            total, correct, tokens = (
                total + loss.total.item(),
                correct + int(loss.correct),
                tokens + loss.tokens,
            )
            if (step + 1) % LOG_EVERY == 0:
                point = {
                    "step": step + 1,
                    "train_loss": round(total / tokens, 4),
                    "token_accuracy": round(correct / tokens, 4),
                    "seconds": round(time.perf_counter() - started),
                }
                curve.write(json.dumps(point) + "\n")
                curve.flush()
                print(point, flush=True)
                total, correct, tokens = 0.0, 0, 0
            if (step + 1) % arguments.save_every == 0:
                save_model(model, arguments.output)


if __name__ == "__main__":
    main()
