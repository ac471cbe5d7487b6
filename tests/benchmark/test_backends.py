"""All backends compute the same from the same weights and inputs."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers  # noqa: F401  # one of the backends
from torch.testing import assert_close

from ftcore import load_model
from ftcore.benchmark.backends import BACKENDS
from ftcore.benchmark.cases import SHAPES, Case, Job
from ftcore.benchmark.inputs import read_batches, training_data, write_batches, write_model
from ftcore.benchmark.worker import peak_bytes, prepare, run_round, start
from tests.helpers.small_clone import use_small_data

VOCAB_SIZE = 1600  # more than the tokenizers in weights/ have
TINY = {
    "gpt2": {"model_type": "gpt2", "n_positions": 96, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "t5": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}
NAMES = ["ftcore", "ftcore-fast", "transformers"]


@pytest.fixture(params=TINY)
def job(request, tmp_path, monkeypatch) -> Job:
    """A tiny model, written like a published shape."""
    monkeypatch.setitem(SHAPES, "tiny", TINY[request.param] | {"vocab_size": VOCAB_SIZE})
    use_small_data(tmp_path, monkeypatch)
    write_model("tiny", tmp_path / "model")
    return Job(
        backend="ftcore",
        case=Case("", "generate"),
        checkpoint=str(tmp_path / "model"),
        vocab_size=VOCAB_SIZE,
        batches=str(tmp_path / "batches"),
        dtype="fp32",
        device="cpu",
        threads=1,
    )


def run(job: Job, rounds: int = 1) -> list[Any]:
    """The outputs of the rounds, in this process."""
    start(job)
    return [run_round(job.device)[1] for _ in range(rounds)]


def write_training_inputs(job: Job, case: Case) -> Job:
    model = load_model(job.checkpoint)
    task, files = training_data(model, train=None, tokenizer=None)
    write_batches(case, task, files, model, Path(job.checkpoint), Path(job.batches))
    return replace(job, case=case, task=task, train=files.train[0])


def test_all_load_the_same_weights(job):
    ours, *others = (BACKENDS[name](replace(job, backend=name)).load() for name in NAMES)
    for other in others:
        for name, weight in ours.named_parameters():
            assert_close(dict(other.named_parameters())[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("beams", [1, 3])
def test_all_generate_the_same_number_of_tokens_and_the_same_ids(job, beams):
    case = Case("", "generate", rows=2, beams=beams, source=9, target=6)
    outputs = {name: run(replace(job, backend=name, case=case), rounds=2) for name in NAMES}
    for first, second in outputs.values():
        assert first == second
        assert [len(row) for row in first] == [6, 6]
    assert outputs["ftcore"] == outputs["ftcore-fast"] == outputs["transformers"]


def test_a_round_is_timed_and_memory_measured(job):
    case = Case("", "generate", source=9, target=2)
    start(replace(job, case=case))
    assert run_round(job.device)[0] > 0
    assert peak_bytes(job.device) > 10**7


@pytest.mark.parametrize("padded", ["", "transformers"])
def test_all_train_on_the_same_examples_to_the_same_loss(job, padded):
    case = Case("", "train", rows=3, source=200, target=40, steps=3, padded=padded, learning_rate=1e-5)
    job = write_training_inputs(job, case)
    tight, wide = (read_batches(Path(job.batches), padded=which) for which in (False, True))
    assert [batch["index"].tolist() for batch in tight] == [batch["index"].tolist() for batch in wide]
    assert {batch["labels"].shape[1] for batch in wide} == {40}
    widths = [batch["input_ids"].shape[1] for batch in tight]
    assert widths == sorted(widths) and widths[-1] < wide[0]["input_ids"].shape[1]

    losses = {name: run(replace(job, backend=name), rounds=2) for name in NAMES}
    for ours, fast, theirs in zip(*losses.values(), strict=True):
        assert len(ours) == case.steps
        assert ours == pytest.approx(fast, abs=1e-4)
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert losses["ftcore"][0] != losses["ftcore"][1]  # the model learns


def test_all_train_with_the_dropout_of_the_job(job):
    job = write_training_inputs(
        job, Case("", "train", rows=3, source=200, target=40, steps=1, learning_rate=1e-5)
    )
    for name in NAMES:
        one = replace(job, backend=name)
        assert run(one) != run(replace(one, dropout=0.1))


def test_loading_has_no_output(job):
    for name in NAMES:
        assert run(replace(job, backend=name, case=Case("load", "load"))) == [None]


def test_all_are_ready_with_the_same_two_tokens(job, tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    case = Case("ready", "ready", source=9, target=2)
    ours, *others = (run(replace(job, backend=name, case=case, cache=str(tmp_path))) for name in NAMES)
    assert [len(row) for row in ours[0]] == [2]
    assert others == [ours, ours]
    assert os.environ["XDG_CACHE_HOME"] == os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_only_the_fast_backend_prepares_its_model(job):
    plain, fast = (BACKENDS[name](replace(job, backend=name)) for name in ("ftcore", "ftcore-fast"))
    model = plain.load()
    assert plain.prepare(model) is model
    assert fast.prepare(model) is not model


def test_ctranslate2_generates_the_same_ids(job):
    pytest.importorskip("ctranslate2")
    case = Case("", "generate", rows=2, source=9, target=6)
    theirs = replace(job, backend="ctranslate2", case=case)
    run(replace(theirs, case=Case("convert", "convert")))
    assert run(theirs) == run(replace(job, case=case))
    with pytest.raises(NotImplementedError, match="does not train"):
        prepare(replace(theirs, case=Case("train", "train")))
