"""A user's own loss, optimizer, learning rate and data in a run: exact accumulation, bit-exact resuming."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ftcore import load_model
from ftcore.data import ExampleDataset, Record
from ftcore.models import Model
from ftcore.train import grouped, main, prepare, take_step, train
from ftcore.training.callbacks import Callback
from ftcore.training.console import print_summary
from ftcore.training.defaults import RunOptions
from ftcore.training.loss import TokenLoss, batch_loss, target_logits
from ftcore.training.options import TrainOptions
from ftcore.training.report import save_report
from ftcore.training.run import Run
from tests.helpers import tiny_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own_parts")
    tiny_runs.tiny_t5(folder / "t5", dropout_rate=0.2)
    tiny_runs.tiny_gpt2(folder / "gpt2", resid_pdrop=0.2)
    tiny_runs.questions(folder / "train.jsonl", 18)
    return folder


def an_option(folder: Path, output: Path, family: str = "t5", **others: Any) -> TrainOptions:
    sizes = {"max_steps": 4, "batch_size": 2, "eval_answers": 0, "max_target_length": 24, "valid_share": 0.3}
    files = {"model": str(folder / family), "train": str(folder / "train.jsonl"), "output": str(output)}
    return TrainOptions(**files | sizes | others)


# --- loss


def focal_loss(model: Model, batch: dict[str, Tensor], label_smoothing: float) -> TokenLoss:
    """Lin et al. 2017: less weight on tokens that are already likely."""
    logits, labels = target_logits(model, batch)
    losses = F.cross_entropy(logits, labels, reduction="none")
    total = ((1 - torch.exp(-losses)) ** 2 * losses).sum()
    return TokenLoss(total, (logits.argmax(-1) == labels).sum(), len(labels))


def mean_loss(model: Model, batch: dict[str, Tensor], label_smoothing: float) -> TokenLoss:
    """A mistake: a mean instead of a sum."""
    total, correct, tokens = focal_loss(model, batch, label_smoothing)
    return TokenLoss(total / tokens, correct, tokens)


def plain_loss(model: Model, batch: dict[str, Tensor], label_smoothing: float) -> TokenLoss:
    logits, labels = target_logits(model, batch)
    total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    return TokenLoss(total, (logits.argmax(-1) == labels).sum(), len(labels))


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize("packing", [False, True])
def test_target_logits_are_those_of_batch_loss(
    folder: Path, tmp_path: Path, family: str, packing: bool
) -> None:
    with prepare(an_option(folder, tmp_path / "run", family, packing=packing)) as run:
        model = run.model.double().eval()
        batch = next(iter(run.train_loader))
    own, ours = plain_loss(model, batch, 0.1), batch_loss(model, batch, 0.1)
    torch.testing.assert_close(own.total, ours.total)
    assert (int(own.correct), own.tokens) == (int(ours.correct), ours.tokens)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize(("loss", "is_exact"), [(focal_loss, True), (mean_loss, False)])
def test_accumulation_is_exact_for_a_loss_of_sums(
    folder: Path, tmp_path: Path, family: str, loss: Any, is_exact: bool
) -> None:
    """Losses and gradients of a batch of 6, whole and as 3 x 2."""
    found = []
    for name, sizes in {"whole": (6, 1), "split": (2, 3)}.items():
        batch_size, grad_accum = sizes
        options = an_option(
            folder, tmp_path / name, family, batch_size=batch_size, grad_accum=grad_accum, dropout=0.0
        )
        with prepare(options, loss=loss) as run:
            run.model.double()
            gradients: list[Tensor] = []
            run.optimizer.register_step_pre_hook(
                lambda *_, run=run, into=gradients: into.extend(  # type: ignore[misc]
                    p.grad.clone() for p in run.model.parameters()
                )
            )
            steps = [take_step(run, group, 0.0) for group in grouped(run.train_loader, grad_accum)]
        found.append((steps, gradients))
    (steps, gradients), (split_steps, split_gradients) = found
    assert len(steps) == len(split_steps) > 1
    matches = torch.tensor(steps).allclose(torch.tensor(split_steps), rtol=1e-12)
    assert matches == is_exact
    if is_exact:
        torch.testing.assert_close(split_gradients, gradients, rtol=1e-9, atol=1e-12)


def test_validation_uses_the_loss(folder: Path, tmp_path: Path) -> None:
    options = an_option(folder, tmp_path / "run", max_steps=1)
    losses = []
    for loss in (batch_loss, focal_loss):
        with prepare(replace(options, overwrite=True), loss=loss) as run:
            train(run)
        losses.append(tiny_runs.metrics(tmp_path / "run")[0]["valid_loss"])
    assert 0.5 < losses[1] / losses[0] < 0.999


def test_a_loss_that_is_a_tensor_is_refused(folder: Path, tmp_path: Path) -> None:
    def tensor_loss(model: Model, batch: dict[str, Tensor], label_smoothing: float) -> Any:
        return batch_loss(model, batch, label_smoothing).total

    message = r"^loss returned a Tensor; expected TokenLoss\(total, correct, tokens\)$"
    with (
        prepare(an_option(folder, tmp_path / "run"), loss=tensor_loss) as run,
        pytest.raises(ValueError, match=message),
    ):
        train(run)


def test_a_loss_that_is_nan_ends_the_run_with_its_batch(folder: Path, tmp_path: Path) -> None:
    def nan_in_training(model: Model, batch: dict[str, Tensor], label_smoothing: float) -> TokenLoss:
        total, correct, tokens = focal_loss(model, batch, label_smoothing)
        return TokenLoss(total * (math.nan if model.training else 1), correct, tokens)

    with (
        prepare(an_option(folder, tmp_path / "run"), loss=nan_in_training) as run,
        pytest.raises(FloatingPointError, match="but the loss of lm_head's logits is not; the batch is in"),
    ):
        train(run)
    assert run.directory.non_finite.exists()


# --- optimizer and learning rate


class SignSGD(torch.optim.Optimizer):
    """A user's optimizer: arguments without defaults, state in parameters, a group, and an attribute."""

    def __init__(self, params: Any, *, momentum: float) -> None:
        super().__init__(params, {"steps": 0})
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - self.momentum)
                parameter.add_(mean.sign(), alpha=-group["lr"] / group["steps"])


def sgd(model: Model, options: RunOptions) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)


def sign_sgd(model: Model, options: RunOptions) -> torch.optim.Optimizer:
    return SignSGD(model.parameters(), momentum=0.5)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run, metrics: dict[str, float]) -> None:
        if metrics["step"] == self.step:
            run.stop("a test")


@pytest.mark.parametrize("optimizer", [sgd, sign_sgd])
def test_a_run_with_own_parts_resumes_exactly(folder: Path, tmp_path: Path, optimizer: Any) -> None:
    own: dict[str, Any] = {"optimizer": optimizer, "loss": focal_loss}
    with prepare(an_option(folder, tmp_path / "whole"), **own) as run:
        train(run)
    options = an_option(folder, tmp_path / "stopped")
    with prepare(options, **own) as run:
        train(run, [StopAt(2)])
    with prepare(replace(options, resume=True), **own) as run:
        assert run.progress.step == 2
        train(run)
    whole, resumed = (load_model(tmp_path / name / "last").state_dict() for name in ("whole", "stopped"))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    assert tiny_runs.metrics(tmp_path / "stopped") == tiny_runs.metrics(tmp_path / "whole")


def test_the_run_sets_the_learning_rate_of_an_own_optimizer(folder: Path, tmp_path: Path) -> None:
    with prepare(an_option(folder, tmp_path / "run", lr=0.5, warmup=0), optimizer=sgd) as run:
        run.learning_rate = lambda step: 0.25 / (step + 1)
        train(run)
    rates = [line["learning_rate"] for line in tiny_runs.metrics(tmp_path / "run") if "learning_rate" in line]
    assert rates == [0.25 / 4] and run.optimizer.param_groups[0]["lr"] == 0.25 / 4


def test_resuming_with_another_optimizer_is_refused(folder: Path, tmp_path: Path) -> None:
    options = an_option(folder, tmp_path / "run", max_steps=1)
    with prepare(options, optimizer=sgd) as run:
        train(run)
    message = f"{tmp_path / 'run'} was trained with SGD, it cannot continue with AdamW"
    with pytest.raises(ValueError, match=message):
        prepare(replace(options, resume=True))


def test_a_state_that_does_not_fit_an_own_optimizer_is_refused(folder: Path, tmp_path: Path) -> None:
    options = an_option(folder, tmp_path / "run", max_steps=1)
    with prepare(options, optimizer=sgd) as run:
        train(run)

    def half(model: Model, options: RunOptions) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(model.parameters())[::2], lr=options.lr)

    with pytest.raises(ValueError, match=r"training_state\.pt: damaged, the run cannot be resumed"):
        prepare(replace(options, resume=True), optimizer=half)


# --- data

PAIRS = [{"source": f"say {number}", "target": "x" * (1 + number % 5)} for number in range(16)]


def write_pairs(path: Path, rows: list[dict[str, str]]) -> str:
    return str(tiny_runs.write_lines(path, rows))


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_rows_in_memory_train_as_the_same_rows_of_files(folder: Path, tmp_path: Path, family: str) -> None:
    options = an_option(folder, tmp_path / "files", family, task="text2text", eval_answers=2)
    files = {
        "train": write_pairs(tmp_path / "train.jsonl", PAIRS[:12]),
        "valid": write_pairs(tmp_path / "valid.jsonl", PAIRS[12:]),
    }
    with prepare(replace(options, **files)) as run:
        train(run)
    options = replace(options, train=None, output=str(tmp_path / "rows"))
    with prepare(options, train_set=PAIRS[:12], valid_set=PAIRS[12:]) as run:
        train(run)
        assert run.fingerprints == {"train": ""}
    from_files, from_rows = (load_model(tmp_path / name / "last").state_dict() for name in ("files", "rows"))
    torch.testing.assert_close(from_rows, from_files, rtol=0, atol=0)
    assert tiny_runs.metrics(tmp_path / "rows") == tiny_runs.metrics(tmp_path / "files")
    assert "exact_match" in tiny_runs.metrics(tmp_path / "rows")[0]


def test_records_are_taken_as_they_are(folder: Path, tmp_path: Path) -> None:
    """A task of one's own is a function from a row to a record."""
    records = [Record(f"{number} ->", f" {number + 1}", (str(number + 1),)) for number in range(10)]
    options = an_option(folder, tmp_path / "run", "gpt2", train=None, task="text2text", eval_answers=2)
    with prepare(options, train_set=records) as run:  # of which a share is held out
        train(run)
        texts = [run.tokenizer.decode(run.train_loader.dataset[0]["input_ids"])]
    assert texts == [
        record.source + record.target for record in records if record.source + record.target in texts
    ]
    [valid_loader] = run.valid_loaders.values()
    assert len(run.train_loader.dataset) == 7 and len(valid_loader.dataset) == 3


class Letters(ExampleDataset):
    """Token ids made by the caller: the letters of a word, and the same letters as labels."""

    def __init__(self, words: list[str], decoder_only: bool) -> None:
        self.words, self.decoder_only = words, decoder_only
        self.lengths = np.array([[len(word), len(word)] for word in words])

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = [ord(letter) for letter in self.words[index]]
        return {"input_ids": ids, "labels": ids, "index": index}

    def source(self, index: int) -> list[int]:
        return [ord(letter) for letter in self.words[index]]


WORDS = ["a" * (2 + number % 5) for number in range(12)]
WRONG_LENGTHS = Letters(WORDS, False)
WRONG_LENGTHS.lengths = np.array([len(word) for word in WORDS])


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_data_set_of_token_ids(
    folder: Path, tmp_path: Path, family: str, capsys: pytest.CaptureFixture
) -> None:
    options = an_option(folder, tmp_path / "run", family, train=None, task="text2text", eval_answers=2)
    decoder_only = family == "gpt2"
    own: dict[str, Any] = {
        "train_set": Letters(WORDS, decoder_only),
        "valid_set": Letters(WORDS[:3], decoder_only),
    }
    with prepare(options, **own) as run:
        train(run, [StopAt(2)])
        print_summary(run)
        save_report(run)
    assert "12 examples for training, 3 for validation" in capsys.readouterr().out
    with prepare(replace(options, resume=True), **own) as run:
        train(run)
    whole = replace(options, output=str(tmp_path / "whole"))
    with prepare(whole, **own) as run:
        train(run)
    assert tiny_runs.metrics(tmp_path / "run") == tiny_runs.metrics(tmp_path / "whole")


def test_validation_sets_by_name(folder: Path, tmp_path: Path) -> None:
    sets = {"dev": PAIRS[:2], "words": Letters(WORDS, False)}
    with prepare(
        an_option(folder, tmp_path / "run", task="text2text", train=None), train_set=PAIRS, valid_set=sets
    ) as run:
        train(run)
    assert {"dev/valid_loss", "words/valid_loss"} <= tiny_runs.metrics(tmp_path / "run")[0].keys()


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ({"train_set": ["a"]}, "train_set: row 0 is 'a'; expected a Record, or a dict of columns"),
        ({"train_set": [*PAIRS, {"source": "a"}]}, "train_set: row 16: no key 'target'"),
        ({"train_set": Letters(WORDS, False)}, "valid_set is missing: only rows can be split"),
        ({"train_set": Letters(WORDS, True)}, "train_set has decoder_only True, this model is T5"),
        (
            {"train_set": WRONG_LENGTHS, "valid_set": PAIRS},
            "train_set.lengths is (12,); expected an array, (12, 2)",
        ),
        ({"train_set": PAIRS, "valid_set": {"source": "a"}}, "valid_set is 'a'; expected rows or a data set"),
        ({"train_set": "a.json"}, "train_set is 'a.json'; expected rows or a data set, `train` takes files"),
        ({"train_set": []}, "cannot split 0 record"),
        ({"train_set": PAIRS, "valid_set": []}, "the data set has no examples"),
        ({}, "`train` names no file"),
    ],
)
def test_wrong_examples_are_refused(
    folder: Path, tmp_path: Path, own: dict[str, Any], complaint: str
) -> None:
    options = an_option(folder, tmp_path / "run", task="text2text", train=[])
    with pytest.raises(ValueError) as error:
        prepare(options, **own)
    assert str(error.value).startswith(complaint)
    assert not (tmp_path / "run").exists()


def test_files_and_examples_of_the_same_set_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`train` names files, and train_set is given too: choose one"):
        prepare(an_option(folder, tmp_path / "run"), train_set=PAIRS)


def test_the_command_does_not_resume_a_run_with_other_examples(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = an_option(folder, tmp_path / "run", task="text2text", train=None, max_steps=1)
    with prepare(options, train_set=PAIRS) as run:
        train(run)
    with pytest.raises(ValueError, match=r"cannot resume in the data: examples was 11 .* and is 10 now"):
        prepare(replace(options, resume=True), train_set=PAIRS[1:])
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "run"), "--resume"])
    assert "--train names no file: such a run has its examples from Python" in capsys.readouterr().err
