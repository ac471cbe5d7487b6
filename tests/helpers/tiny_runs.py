"""Checkpoints and data so small that a whole run of `python -m ftcore.train` takes a fraction of a second."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ftcore.checkpoints.checkpoint import save_model
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

PLACES = ("Arlo", "Bern", "Cork", "Dover", "Essen", "Fargo", "Genoa", "Hull")


def tiny_t5(directory: Path, **settings: Any) -> Path:
    """A random T5 with a byte-level tokenizer."""
    sizes = {"vocab_size": 384, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 1}
    torch.manual_seed(1)
    save_model(
        T5ForConditionalGeneration(T5Config(**sizes | {"decoder_start_token_id": 0} | settings)), directory
    )
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    return directory


def tiny_gpt2(directory: Path, **settings: Any) -> Path:
    """A random GPT-2 whose vocabulary is the 256 bytes and an end token."""
    sizes = {"vocab_size": 257, "n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2}
    ends = {"bos_token_id": 256, "eos_token_id": 256}
    torch.manual_seed(1)
    save_model(GPT2LMHeadModel(GPT2Config(**sizes | ends | settings)), directory)
    vocabulary = {letter: number for number, letter in enumerate(byte_letters())} | {"<|endoftext|>": 256}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return directory


def byte_letters() -> list[str]:
    """GPT-2's character for each byte: printable ones stay, the others are mapped to U+0100 and up."""
    ranges = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = {byte for first, last in ranges for byte in range(ord(first), ord(last) + 1)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + hidden.index(byte)) for byte in range(256)]


def questions(path: Path, count: int, start: int = 0) -> Path:
    """Questions with answers of different lengths, one JSON object a line."""
    rows = []
    for number in range(start, start + count):
        place = PLACES[number % len(PLACES)] * (1 + number % 3)
        rows.append({"context": f"{number} is {place}.", "question": f"{number}?", "answer": place})
    return write_lines(path, rows)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without timings."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "per_second" not in key} for line in lines]
