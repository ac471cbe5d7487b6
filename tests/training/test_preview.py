"""Previews and estimates match the data and the run, and change neither."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import ftcore.train
from ftcore.checkpoints.checkpoint import load_model
from ftcore.cli import parse
from ftcore.data import (
    CausalLMDataset,
    DataLoader,
    Dataset,
    Record,
    SpanCorruption,
    load_tokenizer,
    make_pretraining_dataset,
    read_corpus,
)
from ftcore.train import prepare
from ftcore.training import console
from ftcore.training.estimate import estimate, optimizer_bytes
from ftcore.training.loss import batch_loss
from ftcore.training.options import TrainOptions
from ftcore.training.preview import Lengths, align, padding_share, preview, round_trip
from ftcore.training.run import Run
from tests.helpers import tiny_runs

ROOT = Path(__file__).resolve().parents[2]
WORDS = st.text("ab ", min_size=1).filter(str.strip)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """Tiny models with byte tokenizers, by whether they are decoder_only."""
    folder = tmp_path_factory.mktemp("models")
    return {False: tiny_runs.tiny_t5(folder / "t5"), True: tiny_runs.tiny_gpt2(folder / "gpt2")}


@pytest.fixture(scope="module")
def tools(checkpoints: dict[bool, Path]) -> dict[bool, Any]:
    return {
        decoder_only: (load_model(path), load_tokenizer(path)) for decoder_only, path in checkpoints.items()
    }


def dataset_of(pairs: list[tuple[str, str]], tokenizer: Any, decoder_only: bool, most: int = 64) -> Dataset:
    records = [Record(source, target, (target,)) for source, target in pairs]
    return Dataset(
        records, tokenizer, decoder_only=decoder_only, max_source_length=most, max_target_length=most
    )


def prepared(checkpoint: Path, folder: Path, *options: str) -> Run:
    data = tiny_runs.questions(folder / "train.jsonl", 18)
    words = ["--model", str(checkpoint), "--train", str(data), "--output", str(folder / "run"), *options]
    run = prepare(parse(TrainOptions, words, command="ftcore.train"))
    run.directory.close()  # another run may replace it
    return run


# --- statistics


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 5000) | st.integers(0, 20), min_size=1, max_size=60))
def test_a_histogram_counts_every_example_once(lengths: list[int]) -> None:
    found = Lengths("source", np.array(lengths))
    bins = found.bins()
    assert sum(count for *_, count in bins) == len(lengths) and len(bins) <= 8
    for first, last, count in bins:
        assert count == sum(first <= length <= last for length in lengths)
    median, p95 = found.percentile(50), found.percentile(95)
    assert sum(length <= median for length in lengths) >= len(lengths) / 2
    assert sum(length < median for length in lengths) <= len(lengths) / 2
    assert sum(length <= p95 for length in lengths) >= 0.95 * len(lengths)
    assert bins[0][0] == min(lengths) and bins[-1][1] == max(lengths)
    assert [int(line.split()[-1].replace(",", "")) for line in found.histogram()] == [c for *_, c in bins]


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=30),
    decoder_only=st.booleans(),
    batch_size=st.integers(1, 7),
    accumulate=st.integers(1, 3),
    bucket=st.booleans(),
    fixed=st.booleans(),
    packed=st.booleans(),
)
def test_padding_share_matches_the_batches(
    tools: dict[bool, Any],
    pairs: list[tuple[str, str]],
    decoder_only: bool,
    batch_size: int,
    accumulate: int,
    bucket: bool,
    fixed: bool,
    packed: bool,
) -> None:
    assume(not (fixed and packed))
    model, tokenizer = tools[decoder_only]
    loader = DataLoader(
        dataset_of(pairs, tokenizer, decoder_only),
        batch_size,
        pad_id=200,  # not a token of these texts, so that padding can be counted
        accumulate=accumulate,
        shuffle=True,
        bucket=bucket,
        pad_to_max_length=fixed,
        pack=packed,
    )
    batches = list(loader)
    found = preview(loader, model, tokenizer).padding
    inputs, *labels = found.values()
    assert inputs == pytest.approx(share([batch["input_ids"] for batch in batches], 200))
    if decoder_only:
        assert not labels
    else:
        assert labels == [pytest.approx(share([batch["labels"] for batch in batches], -100))]
    assert padding_share(loader, 0) == inputs


def share(tensors: list[Tensor], value: int) -> float:
    return sum(int((tensor == value).sum()) for tensor in tensors) / sum(tensor.numel() for tensor in tensors)


@settings(deadline=None, max_examples=30)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12), decoder_only=st.booleans())
def test_truncated_examples_and_missing_end_tokens(
    tools: dict[bool, Any], pairs: list[tuple[str, str]], decoder_only: bool
) -> None:
    model, tokenizer = tools[decoder_only]
    found = preview(DataLoader(dataset_of(pairs, tokenizer, decoder_only, 8), 2, pad_id=0), model, tokenizer)
    over = {  # T5's </s> counts on both sides; GPT-2's end token belongs to the target
        "source": sum(len(source) + (not decoder_only) > 8 for source, _ in pairs),
        "target": sum(len(target) + 1 > 8 for _, target in pairs),
    }
    assert found.truncated == over
    # T5's target keeps its end token when it is truncated.
    assert found.ended == len(pairs) - (over["target"] if decoder_only else 0)
    text = "\n".join(found.lines())
    assert ("lack the end token: truncated" in text) == (found.ended < len(pairs))
    assert ("truncated  none" in text) == (not any(over.values()))


def test_characters_that_the_tokenizer_loses() -> None:
    tokenizer = load_tokenizer(ROOT / "weights" / "t5-mini")
    texts = ["a plain text", "a  wide\ntext", "ж and 中", "ж", "中"]
    found = round_trip(iter(texts), tokenizer)
    assert (found.texts, found.changed, found.respaced) == (5, 3, 1)
    assert dict(found.lost) == {"ж": 2, "中": 2}
    assert found.unknown is not None and found.unknown >= 4
    assert found.tokens == sum(len(tokenizer.encode(text)) - 1 for text in texts)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(), max_size=8))
def test_a_byte_level_vocabulary_loses_nothing(tools: dict[bool, Any], texts: list[str]) -> None:
    found = round_trip(iter(texts), tools[True][1])
    assert (found.changed, found.respaced, found.unknown, found.lost) == (0, 0, None, [])


@pytest.mark.parametrize("decoder_only", [False, True])
def test_texts_without_loss(tools: dict[bool, Any], decoder_only: bool) -> None:
    model, tokenizer = tools[decoder_only]
    loader = DataLoader(dataset_of([("a", "b")], tokenizer, decoder_only), 1, pad_id=0)
    text = "\n".join(preview(loader, model, tokenizer).lines())
    assert "round trip 2 texts are the same after encoding and decoding" in text


# --- the aligned example


@settings(deadline=None, max_examples=40)
@given(source=WORDS, target=WORDS)
def test_t5_reads_its_labels_shifted_right(tools: dict[bool, Any], source: str, target: str) -> None:
    model, tokenizer = tools[False]
    found = align(dataset_of([(source, target)], tokenizer, False), model, tokenizer)
    assert found.source == source + "</s>"
    assert found.inputs[0] == "<pad>" and found.inputs[1:] == found.labels[:-1]
    expected = [*target, "</s>"]
    assert found.labels == expected[:10] and found.length == len(expected)


@settings(deadline=None, max_examples=40)
@given(source=st.just("") | WORDS, target=WORDS)
def test_gpt2s_labels_are_the_next_tokens_of_the_target(
    tools: dict[bool, Any], source: str, target: str
) -> None:
    model, tokenizer = tools[True]
    found = align(dataset_of([(source, target)], tokenizer, True), model, tokenizer)
    text = [*source, *target, "<|endoftext|>"]
    assert found.source is None and found.length == len(text) - 1
    assert found.inputs == text[found.start :][: len(found.inputs)]
    for position, label in enumerate(found.labels, start=found.start):
        is_target = position + 1 >= len(source)
        assert label == (text[position + 1] if is_target else None)
    assert any(label is not None for label in found.labels)


def test_words_are_shown_with_the_space_before_them() -> None:
    tokenizer, model = (
        load_tokenizer(ROOT / "weights" / "gpt2-mini"),
        load_model(ROOT / "weights" / "gpt2-mini"),
    )
    dataset = dataset_of([("", "i feel happy today")], tokenizer, True)
    found = align(dataset, model, tokenizer)
    assert "".join(found.inputs) == "i feel happy today" and found.inputs[1] == " feel"


@pytest.mark.parametrize("decoder_only", [False, True])
def test_control_characters_do_not_reach_the_terminal(tools: dict[bool, Any], decoder_only: bool) -> None:
    model, tokenizer = tools[decoder_only]
    loader = DataLoader(dataset_of([("\x1b[2J", "\x1b]0;x\x07\r\n")], tokenizer, decoder_only), 1, pad_id=0)
    assert all(line.isprintable() for line in preview(loader, model, tokenizer).lines())


def test_a_long_example_fits_a_line(tools: dict[bool, Any]) -> None:
    for decoder_only in (False, True):
        model, tokenizer = tools[decoder_only]
        loader = DataLoader(dataset_of([("x" * 60, "\n" * 60)], tokenizer, decoder_only), 1, pad_id=0)
        assert all(len(line) <= 110 for line in preview(loader, model, tokenizer).lines())


# --- corpora and large data sets


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.txt", "the quick brown fox. <|endoftext|>" * 200),
        ("text.jsonl", '{"id": 1, "text": "the quick brown fox. \\u001b[2J"}\n' * 200),
        ("text.csv", "id,text\n" + '1,"the quick brown fox."\n' * 200),
    ],
)
@pytest.mark.parametrize("decoder_only", [False, True])
def test_a_corpus(
    tools: dict[bool, Any], tmp_path: Path, decoder_only: bool, name: str, content: str
) -> None:
    model, tokenizer = tools[decoder_only]
    text = tmp_path / name
    text.write_text(content)
    corpus = read_corpus(
        "lm" if decoder_only else "span-corruption", text, tokenizer, decoder_only=decoder_only
    )
    dataset = make_pretraining_dataset(corpus, tokenizer, max_source_length=40, max_target_length=40)
    assert isinstance(dataset, CausalLMDataset if decoder_only else SpanCorruption)
    found = preview(DataLoader(dataset, 4, pad_id=0), model, tokenizer)
    assert found.examples == len(dataset) and found.is_blocks == decoder_only
    assert found.round_trip.texts > 0 and found.round_trip.changed == 0
    lines = "\n".join(found.lines())
    assert "{" not in lines and "id," not in lines and "\x1b" not in lines
    assert found.lines() and (
        ("blocks contain the end of a document" in "\n".join(found.lines())) == decoder_only
    )


def test_a_sample_of_many_examples(tools: dict[bool, Any]) -> None:
    model, tokenizer = tools[False]
    dataset = dataset_of([("ab", "c")] * 700, tokenizer, False)
    found = preview(DataLoader(dataset, 8, pad_id=0), model, tokenizer)
    assert (found.examples, len(found.lengths[0].values), found.sampled) == (700, 700, 500)
    assert "all of 500 targets" in "\n".join(found.lines())


# --- memory and time


@pytest.mark.parametrize("options", [[], ["--relative-steps"], ["--optimizer", "adafactor"]])
@pytest.mark.parametrize("decoder_only", [False, True])
def test_optimizer_bytes(
    checkpoints: dict[bool, Path], tmp_path: Path, decoder_only: bool, options: list[str]
) -> None:
    run = prepared(checkpoints[decoder_only], tmp_path, *options)
    estimated = optimizer_bytes(run.optimizer)
    batch_loss(run.model, next(iter(run.train_loader))).total.backward()
    run.optimizer.step()
    states = run.optimizer.state.values()
    held = [one for state in states for name, one in state.items() if name != "step" and one is not None]
    assert estimated == sum(tensor.numel() * tensor.element_size() for tensor in held)


@pytest.mark.parametrize("decoder_only", [False, True])
def test_an_estimate_does_not_change_the_run(
    checkpoints: dict[bool, Path], tmp_path: Path, decoder_only: bool
) -> None:
    run = prepared(checkpoints[decoder_only], tmp_path, "--batch-size", "4")
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    position, random = run.train_loader.state_dict(), torch.get_rng_state()
    found = estimate(run)
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.named_parameters())
    assert all(weight.grad is None for weight in run.model.parameters())
    assert run.train_loader.state_dict() == position and torch.equal(torch.get_rng_state(), random)
    assert not run.optimizer.state and run.model.training
    longest = max(batch["input_ids"].shape[1] for batch in run.train_loader)
    assert found.largest == (4, longest)
    assert found.weights == found.gradients == 4 * sum(p.numel() for p in run.model.parameters())
    assert found.activations > 4 * 4 * longest * 16  # at the least one residual stream
    assert found.seconds_per_epoch > 0 and found.memory > found.weights + found.gradients + found.moments


def test_freezing_and_checkpointing_save_memory(checkpoints: dict[bool, Path], tmp_path: Path) -> None:
    plain = estimate(prepared(checkpoints[False], tmp_path))
    frozen = estimate(prepared(checkpoints[False], tmp_path, "--overwrite", "--freeze", "encoder"))
    assert frozen.weights == plain.weights and frozen.gradients < plain.gradients
    assert frozen.moments < plain.moments and frozen.activations < plain.activations
    again = estimate(prepared(checkpoints[False], tmp_path, "--overwrite", "--gradient-checkpointing"))
    assert again.activations < plain.activations


# --- the command


def command(checkpoint: Path, folder: Path) -> list[str]:
    data = tiny_runs.questions(folder / "train.jsonl", 18)
    quick = ("--batch-size", "3", "--max-steps", "4", "--eval-answers", "2", "--max-target-length", "20")
    return ["--model", str(checkpoint), "--train", str(data), "--lr", "0.01", *quick]


@pytest.mark.parametrize("decoder_only", [False, True])
def test_preview_and_estimate_change_no_weight(
    checkpoints: dict[bool, Path], tmp_path: Path, decoder_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, any change of the random state would show."""
    words = command(checkpoints[decoder_only], tmp_path)

    def weights(name: str) -> dict[str, Tensor]:
        assert ftcore.train.main([*words, "--output", str(tmp_path / name)]) == 0
        return load_file(tmp_path / name / "last" / "model.safetensors")

    previewed = weights("previewed")
    monkeypatch.setattr(console, "print_summary", lambda run: None)
    plain = weights("plain")
    monkeypatch.setattr(console, "print_summary", estimate)
    torch.testing.assert_close([previewed, weights("estimated")], [plain, plain], rtol=0, atol=0)


def test_a_dry_run_leaves_no_files(
    checkpoints: dict[bool, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    words = command(checkpoints[False], tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert ftcore.train.main([*words, "--dry-run"]) == 0
    assert ftcore.train.main([*words, "--dry-run", "--output", "new"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    output = capsys.readouterr().out
    for start in ("model", "task", "steps", "source", "target", "padding", "example", "memory", "time"):
        assert re.search(f"^{start} ", output, re.M)
    assert "directory" not in output


def test_a_dry_run_refuses_what_the_run_would_refuse(
    checkpoints: dict[bool, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = command(checkpoints[False], tmp_path)
    ftcore.train.main([*words, "--output", str(tmp_path / "run")])
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    for options, message in (
        (["--dry-run"], "already holds a run"),
        (["--dry-run", "--resume"], "--dry-run trains nothing, so that there is nothing to --resume"),
    ):
        with pytest.raises(SystemExit) as ending:
            ftcore.train.main([*words, "--output", str(tmp_path / "run"), *options])
        assert ending.value.code == 2 and message in capsys.readouterr().err
    assert ftcore.train.main([*words, "--output", str(tmp_path / "run"), "--dry-run", "--overwrite"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log
    assert json.loads((tmp_path / "run" / "train_config.json").read_text())["dry_run"] is False
