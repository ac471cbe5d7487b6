"""Pretrain weights/t5-mini by span corruption on a stream of generated passages, without repetition.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 weights/pretrain_t5_mini.py      # about 2 hours

There are no questions in the data. But the passages (examples/data/make_qa.py) state every fact twice, in
different words, so a removed span can be inferred from the other sentence: to fill the gap in "Mirela has a
house in <extra_id_0>", the model must find where else the passage says where Mirela lives. Reading
comprehension needs the same skill; fine-tuning only adds the format of questions. The training curve is
written to t5-mini/curve.jsonl. Without torchrun, one process computes whole batches.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ftcore import load_tokenizer, save_model
from ftcore.data.loader import IGNORED_LABEL, pad_rows
from ftcore.data.pretraining import corrupt_spans, cut_spans
from ftcore.data.tokenizer import Tokenizer
from ftcore.fast import prepare_for_training
from ftcore.models import T5Config, T5ForConditionalGeneration
from ftcore.training.distributed import all_reduce_sum, rank, shard, world_size, wrap
from ftcore.training.optim import adamw, set_learning_rate

WEIGHTS = Path(__file__).resolve().parent
sys.path.insert(0, str(WEIGHTS.parent / "examples" / "data"))

import invented_words  # noqa: E402  (not in a package)
import make_qa  # noqa: E402

DIRECTORY = WEIGHTS / "t5-mini"
BATCH = 64
NOISE_DENSITY = 0.2
WARMUP = 100  # steps
COOL_DOWN = 12000  # last steps, with linear decay of the learning rate to 0
# Fractions of the sentences in front:
DESCRIBED = 0.5  # the subject is described ("the baker"), where it can be
SHUFFLED = 0.5  # the words around the gap are in random order, in the last stage
UNMARKED = 0.6  # no sentinels in the source and none at the start of the target, in the last stage
LOG_EVERY = 50


@dataclass(frozen=True)
class Stage:
    until: int  # last step
    shapes: tuple[tuple[int, int], ...]  # subjects and kinds of facts, see make_qa.story
    spans: float | str  # mean length of random spans, or one of "salient", "in front" and "loosely in front"
    lr: float  # relative to the norm of each tensor, see `adamw`


# A curriculum. Spans of one or two tokens in passages of four sentences teach the model to copy the missing
# part of a name from another sentence. Random spans in longer passages make this robust, but the model still
# confuses the people of a passage, since few spans depend on the right person. Salient spans (names and
# values: Guu et al. 2020, REALM) all do. Then the sentences with the spans precede the passage, like a
# question in fine-tuning: the skill does not transfer to that position by itself. There are two such
# sentences, so that the model is not yet trained to answer one sentence with one answer. A question has no
# sentinel, and other words in another order. So in the last stage most gaps have no sentinel, and half of the
# sentences in front are shuffled. In that stage many words are new, see invented_words.py and
# english_words.py; in an earlier one they would delay all that follows.
ONE_KIND = ((2, 1),)
ALL_KINDS = ((2, 1), (2, 2), (2, 3), (3, 2))
LONG = ((2, 1), (2, 2), (2, 2), (2, 3), (3, 1))
STAGES = (
    Stage(500, ONE_KIND, 3.0, 1.0e-2),
    Stage(1700, ONE_KIND, 1.5, 1.5e-2),
    Stage(2000, ALL_KINDS, 1.5, 1.5e-2),
    Stage(3000, ALL_KINDS, 3.0, 1.2e-2),
    Stage(4000, ONE_KIND, 1.2, 1.5e-2),
    Stage(5000, ALL_KINDS, 2.0, 1.2e-2),
    Stage(6400, ((2, 1), (2, 1), (2, 2)), "salient", 1.2e-2),
    Stage(7500, LONG, "salient", 1.2e-2),
    Stage(10000, LONG, "in front", 1.0e-2),
    Stage(30000, LONG, "loosely in front", 7e-3),
)


Example = tuple[list[int], list[int]]  # source and target, both with </s>


def corrupt(stage: Stage, tokenizer: Tokenizer, rng: Random, noise: np.random.Generator) -> Example:
    """Generate a story and corrupt it with the spans of the stage."""
    shape = rng.choice(stage.shapes)
    special = {"sentinel_id": tokenizer.sentinel_id, "eos_id": tokenizer.eos_id}
    if stage.spans == "in front":
        story = make_qa.story(rng, shape=shape, restated=0.0)
        return cut_spans(*gaps_in_front(story, tokenizer, rng), **special)
    if stage.spans == "loosely in front":
        ids, mask = gaps_in_front(invented_words.story(rng, shape), tokenizer, rng, shuffled=SHUFFLED)
        source, target = cut_spans(ids, mask, **special)
        if rng.random() < UNMARKED:
            sentinels = {tokenizer.sentinel_id(number) for number in range(2)}
            return [token for token in source if token not in sentinels], target[1:]
        return source, target
    story = make_qa.story(rng, shape=shape, restated=1.0)
    ids = tokenizer.encode(story.context)[:-1]
    if stage.spans == "salient":
        return cut_spans(ids, salient_spans(story, ids, tokenizer, rng), **special)
    lengths = {"noise_density": NOISE_DENSITY, "mean_span_length": stage.spans}
    return corrupt_spans(ids, noise, **lengths, **special)


def gaps_in_front(
    story: make_qa.Story, tokenizer: Tokenizer, rng: Random, *, shuffled: float = 0.0
) -> tuple[list[int], list[bool]]:
    """Restate two facts before a story: (ids, mask of a name or value in each of the two sentences).

    In a fraction `shuffled` of the sentences, the words around the gap are in random order.
    """
    ids: list[int] = []
    mask: list[bool] = []

    def append(text: str, *, gap: bool) -> None:
        tokens = tokenizer.encode(text)[:-1]
        ids.extend(tokens)
        mask.extend([gap] * len(tokens))

    for statement in rng.sample(story.statements, 2):
        before, gap, after = sentence_with_gap(story, statement, rng)
        if rng.random() < shuffled:
            before, after = shuffled_around_gap(before, after, rng)
        append(before, gap=False)
        append(gap, gap=True)
        append(after, gap=False)
    append(story.context, gap=False)
    return ids, mask


def sentence_with_gap(
    story: make_qa.Story, statement: make_qa.Statement, rng: Random
) -> tuple[str, str, str]:
    """One fact as a sentence: (text before the gap, removed name or value, text after it)."""
    descriptions = story.descriptions_for(statement)
    while True:
        slot = rng.choice(list(statement.fact.questions))
        mention = statement.subject.named()
        if descriptions and slot != "who" and rng.random() < DESCRIBED:
            mention = statement.subject.described(rng.choice(descriptions))
        sentence = statement.say(rng.choice(statement.fact.sentences), mention) + "."
        gap = str(statement.subject.name if slot == "who" else statement.values[slot])
        found = re.search(rf"\b{re.escape(gap)}\b", sentence)
        if found:
            before, after = sentence[: found.start()], sentence[found.end() :]
            return before[:1].upper() + before[1:], gap, after


def shuffled_around_gap(before: str, after: str, rng: Random) -> tuple[str, str]:
    """The words of both texts in random order. At least one follows the gap: adjacent gaps would merge."""
    words = f"{before} {after}".split()
    rng.shuffle(words)
    place = rng.randrange(len(words))
    return " ".join(words[:place]), " ".join(words[place:])


def salient_spans(story: make_qa.Story, ids: list[int], tokenizer: Tokenizer, rng: Random) -> np.ndarray:
    """A mask (length,) with one mention of the subject or of a value of each statement."""
    mask = np.zeros(len(ids), dtype=bool)
    for statement in story.statements:
        mentions = [statement.subject.name, *(statement.values[slot] for slot in statement.fact.values)]
        mention = rng.choice(mentions).removeprefix("the ")
        piece = tokenizer.encode(mention)[:-1]
        starts = [i for i in range(1, len(ids)) if ids[i : i + len(piece)] == piece]
        if starts:
            start = rng.choice(starts)
            neighbourhood = mask[start - 1 : start + len(piece) + 1]
            if not neighbourhood.any():  # adjacent spans would merge
                mask[start : start + len(piece)] = True
    return mask


def examples(stage: Stage, tokenizer: Tokenizer, rng: Random, noise: np.random.Generator) -> list[Example]:
    """The examples of 16 batches, sorted by length to reduce padding."""
    pairs = [corrupt(stage, tokenizer, rng, noise) for _ in range(16 * BATCH)]
    return sorted(pairs, key=lambda pair: len(pair[0]))


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """(learning rate, this process's rows of the batch) for each step of all stages."""
    rng, noise, step = Random(f"t5-mini {seed}"), np.random.default_rng(seed), 0
    for stage in STAGES:
        while step < stage.until:
            rows = examples(stage, tokenizer, rng, noise)
            chunks = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
            rng.shuffle(chunks)
            for chunk in chunks[: stage.until - step]:
                sources, targets = zip(*shard(chunk), strict=True)
                yield (
                    stage.lr,
                    {
                        "input_ids": pad_rows(sources, tokenizer.pad_id),
                        "attention_mask": pad_rows([[1] * len(source) for source in sources], 0),
                        "labels": pad_rows(targets, IGNORED_LABEL),
                    },
                )
                step += 1


def new_model(tokenizer: Tokenizer) -> T5ForConditionalGeneration:
    """1.3 M parameters, with the tied and scaled head of T5 v1.0 and the gated gelu of v1.1."""
    config = T5Config(
        vocab_size=tokenizer.vocab_size,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,  # no passage is repeated, so the model cannot overfit
        decoder_start_token_id=tokenizer.pad_id,
    )
    return T5ForConditionalGeneration(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DIRECTORY, help="directory of the checkpoint")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="seed of the passages and the initial weights")
    arguments = parser.parse_args()

    if "RANK" in os.environ:  # set by torchrun
        dist.init_process_group("gloo")
    torch.manual_seed(arguments.seed)
    tokenizer = load_tokenizer(DIRECTORY)
    model = prepare_for_training(new_model(tokenizer).train())
    compute_loss = wrap(model, torch.device("cpu"), "ddp" if world_size() > 1 else None)
    # T5 needs updates relative to the size of each tensor: the embedding is initialised with std 1, the query
    # projections with 1/64. An absolute step that is large enough for one is too large for the other.
    optimizer = adamw(model, lr=0.0, weight_decay=0.0, relative=True)
    total_steps = STAGES[-1].until
    if rank() == 0:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "curve.jsonl").unlink(missing_ok=True)
        if arguments.output != DIRECTORY:
            tokenizer.save_pretrained(arguments.output)

    started, total, correct, tokens = time.perf_counter(), 0.0, 0.0, 0.0
    for step, (lr, batch) in enumerate(batches(tokenizer, arguments.seed), start=1):
        warm = min(1.0, step / WARMUP)
        cool = min(1.0, (total_steps + 1 - step) / COOL_DOWN)
        set_learning_rate(optimizer, lr * warm * cool)
        with torch.autocast("cpu", torch.bfloat16):
            loss = compute_loss(batch)
        batch_tokens = all_reduce_sum(loss.tokens)
        (loss.total / batch_tokens * world_size()).backward()  # DDP averages over the processes
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

        total, correct, tokens = total + loss.total.item(), correct + int(loss.correct), tokens + batch_tokens
        if step % LOG_EVERY == 0:
            total, correct = all_reduce_sum(total), all_reduce_sum(correct)
            point = {
                "step": step,
                "train_loss": round(total / tokens, 4),
                "token_accuracy": round(correct / tokens, 4),
                "seconds": round(time.perf_counter() - started),
            }
            if rank() == 0:
                with (arguments.output / "curve.jsonl").open("a", encoding="utf-8") as curve:
                    curve.write(json.dumps(point) + "\n")
                print(point, flush=True)
            total, correct, tokens = 0.0, 0.0, 0.0
        if rank() == 0 and (step % arguments.save_every == 0 or step == total_steps):
            save_model(model, arguments.output)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
