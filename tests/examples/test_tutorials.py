"""The two lessons in examples/ run, and their examples and losses equal those of the library."""

import importlib.util
import json
import re
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ftcore import load_model, load_tokenizer, save_model
from ftcore.data import DataLoader, Dataset, read_records
from ftcore.decoding import generate
from ftcore.models import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from ftcore.training.loss import batch_loss
from ftcore.training.scoring import score_loss

ROOT = Path(__file__).resolve().parents[2]
QA = ROOT / "examples" / "data" / "qa"
EMOTION = ROOT / "examples" / "data" / "emotion"


def load_lesson(name: str) -> ModuleType:
    """Import a script as a module, without running `main`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_tiny_t5(tokenizer: Path, directory: Path) -> Path:
    """A tiny random T5 with a real tokenizer; the embedding has more rows than the tokenizer has ids."""
    shutil.copytree(tokenizer, directory, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    vocab_size = load_tokenizer(directory).vocab_size + 28
    config = T5Config(vocab_size=vocab_size, decoder_start_token_id=0, **sizes)
    save_model(T5ForConditionalGeneration(config), directory)
    return directory


def save_tiny_gpt2(tokenizer: Path, directory: Path) -> Path:
    shutil.copytree(tokenizer, directory, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
    torch.manual_seed(0)
    loaded = load_tokenizer(directory)
    sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 2}
    ids = {"eos_token_id": loaded.eos_id, "bos_token_id": loaded.eos_id}
    save_model(GPT2LMHeadModel(GPT2Config(vocab_size=loaded.vocab_size, **sizes, **ids)), directory)
    return directory


def few_questions(split: str, passages: int, path: Path) -> Path:
    document = json.loads((QA / f"{split}.json").read_text(encoding="utf-8"))
    document["data"] = [{"paragraphs": document["data"][0]["paragraphs"][:passages]}]
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def few_lines(split: str, lines: int, path: Path) -> Path:
    text = (EMOTION / f"{split}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(text[:lines]), encoding="utf-8")
    return path


@pytest.fixture
def t5_lesson(tmp_path, monkeypatch) -> ModuleType:
    """The lesson with a tiny model and few questions, writing to tmp_path."""
    lesson = load_lesson("t5_question_answering")
    monkeypatch.chdir(tmp_path)
    lesson.MODEL = str(save_tiny_t5(ROOT / "weights" / "t5-mini", tmp_path / "model"))
    lesson.TRAIN_FILE = few_questions("train", 20, tmp_path / "train.json")
    lesson.VALID_FILE = few_questions("valid", 2, tmp_path / "valid.json")
    lesson.WARMUP_STEPS = 2
    lesson.LEARNING_RATE = 1e-2
    lesson.QUESTIONS_TO_ANSWER = 3
    lesson.OUTPUT_LENGTH = 12
    return lesson


@pytest.fixture
def gpt2_lesson(tmp_path, monkeypatch) -> ModuleType:
    lesson = load_lesson("gpt2_emotion")
    monkeypatch.chdir(tmp_path)
    lesson.MODEL = str(save_tiny_gpt2(ROOT / "weights" / "gpt2-mini", tmp_path / "model"))
    lesson.TRAIN_FILE = few_lines("train", 40, tmp_path / "train.txt")
    lesson.VALID_FILE = few_lines("valid", 8, tmp_path / "valid.txt")
    lesson.WARMUP_STEPS = 2
    lesson.LEARNING_RATE = 1e-2
    lesson.SAVE_EVERY = 7
    return lesson


def losses(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"loss (\d+\.\d+)", printed)]


# -------------------------------------------------------------------------------------- t5_question_answering


def test_the_t5_lesson_runs_and_its_loss_falls(t5_lesson, capsys):
    t5_lesson.main()
    printed = capsys.readouterr().out
    seen = losses(printed)
    assert len(seen) == 1 + t5_lesson.EPOCHS
    assert seen[-1] < seen[0]
    assert printed.count("exact match") == 1 + t5_lesson.EPOCHS
    assert t5_lesson.QUESTION in printed.splitlines()[-1]
    saved = load_model(t5_lesson.OUTPUT), load_tokenizer(t5_lesson.OUTPUT)
    assert isinstance(t5_lesson.answer(*saved, t5_lesson.CONTEXT, t5_lesson.QUESTION), str)


def test_the_t5_lesson_runs_with_the_real_vocabulary(t5_lesson, real_data, tmp_path):
    t5_lesson.MODEL = str(save_tiny_t5(real_data / "t5", tmp_path / "real"))
    t5_lesson.EPOCHS = 1
    t5_lesson.main()
    assert load_tokenizer(t5_lesson.OUTPUT).vocab_size == 32100


def batches(lesson: ModuleType, data, size: int, tokenizer) -> torch.utils.data.DataLoader:
    collate = partial(lesson.collate, pad_id=tokenizer.pad_id)
    return torch.utils.data.DataLoader(data, size, collate_fn=collate)


def test_t5_batches_equal_those_of_the_library(t5_lesson):
    t5_lesson.INPUT_LENGTH, t5_lesson.OUTPUT_LENGTH = 81, 3  # truncates some of both
    tokenizer = load_tokenizer(t5_lesson.MODEL)
    data = t5_lesson.QuestionAnswering(t5_lesson.VALID_FILE, tokenizer)
    records = read_records("qa", t5_lesson.VALID_FILE, decoder_only=False)
    library = Dataset(records, tokenizer, decoder_only=False, max_source_length=81, max_target_length=3)
    assert library.truncated_sources and library.truncated_targets
    assert len(data) == len(library) == 10
    expected = DataLoader(library, 4, pad_id=tokenizer.pad_id, bucket=False)
    for batch, other in zip(batches(t5_lesson, data, 4, tokenizer), expected, strict=True):
        assert batch.keys() == {"input_ids", "attention_mask", "labels"}
        assert all(torch.equal(tensor, other[name]) for name, tensor in batch.items())
    first = next(iter(expected))
    assert (first["labels"] == -100).any() and not first["attention_mask"].all()


def test_t5_losses_equal_those_of_the_library(t5_lesson):
    tokenizer, model = load_tokenizer(t5_lesson.MODEL), load_model(t5_lesson.MODEL)
    data = t5_lesson.QuestionAnswering(t5_lesson.VALID_FILE, tokenizer)
    loader = batches(t5_lesson, data, 4, tokenizer)  # 10 examples: the last batch is short
    for batch in loader:
        library = batch_loss(model, batch)
        torch.testing.assert_close(t5_lesson.batch_loss(model, batch), library.total / library.tokens)
    assert t5_lesson.validate(model, loader) == pytest.approx(score_loss(model, loader).loss, rel=1e-5)


# ----------------------------------------------------------------------------------------------- gpt2_emotion


def test_the_gpt2_lesson_runs_and_its_loss_falls(gpt2_lesson, capsys):
    gpt2_lesson.main()
    printed = capsys.readouterr().out
    seen = losses(printed)
    assert len(seen) == gpt2_lesson.EPOCHS == 3
    assert seen[-1] < seen[0]
    assert printed.count(gpt2_lesson.PROMPT) == 2  # before training and after
    # 3 epochs of 10 steps, saved at 7, 14, 21 and 28
    kept = sorted(path.name for path in gpt2_lesson.OUTPUT.iterdir())
    assert kept == ["checkpoint-000021", "checkpoint-000028", "final"]
    for name in kept:
        load_model(gpt2_lesson.OUTPUT / name)
        load_tokenizer(gpt2_lesson.OUTPUT / name)


def test_the_gpt2_lesson_runs_with_the_real_vocabulary(gpt2_lesson, real_data, tmp_path):
    gpt2_lesson.MODEL = str(save_tiny_gpt2(real_data / "gpt2", tmp_path / "real"))
    gpt2_lesson.EPOCHS = 1
    gpt2_lesson.main()
    assert load_tokenizer(gpt2_lesson.OUTPUT / "final").vocab_size == 50257


def test_labels_include_the_first_end_token_only(gpt2_lesson):
    tokenizer = load_tokenizer(gpt2_lesson.MODEL)
    assert tokenizer.pad_id == tokenizer.eos_id
    for example in gpt2_lesson.Messages(gpt2_lesson.TRAIN_FILE, tokenizer):
        tokens = int(example["attention_mask"].sum())
        assert all(tensor.shape == (64,) for tensor in example.values())
        assert example["input_ids"][tokens - 1 :].eq(tokenizer.eos_id).all()
        assert example["labels"][:tokens].tolist() == example["input_ids"][:tokens].tolist()
        assert example["labels"][tokens:].eq(-100).all()


def test_a_truncated_message_has_no_end_token(gpt2_lesson, tmp_path):
    tokenizer = load_tokenizer(gpt2_lesson.MODEL)
    (tmp_path / "long.txt").write_text("i feel " + "very " * 100 + "well;joy\n", encoding="utf-8")
    (example,) = gpt2_lesson.Messages(tmp_path / "long.txt", tokenizer)
    assert len(example["input_ids"]) == 64
    assert example["attention_mask"].all()
    assert tokenizer.eos_id not in example["labels"].tolist()


def test_gpt2_losses_equal_those_of_the_library(gpt2_lesson):
    tokenizer, model = load_tokenizer(gpt2_lesson.MODEL), load_model(gpt2_lesson.MODEL)
    data = gpt2_lesson.Messages(gpt2_lesson.VALID_FILE, tokenizer)
    total, tokens = 0.0, 0
    for batch in torch.utils.data.DataLoader(data, 3):  # 8 examples: the last batch is short
        library = batch_loss(model, batch)
        total, tokens = total + library.total.item(), tokens + library.tokens
        torch.testing.assert_close(gpt2_lesson.batch_loss(model, batch), library.total / library.tokens)
    loader = torch.utils.data.DataLoader(data, 3)
    assert gpt2_lesson.validate(model, loader) == pytest.approx(total / tokens, rel=1e-5)


def test_it_generates_100_tokens_without_repeated_bigrams(gpt2_lesson, monkeypatch):
    tokenizer, model = load_tokenizer(gpt2_lesson.MODEL), load_model(gpt2_lesson.MODEL)
    model.generation_config = {"min_new_tokens": 100}  # no early stop
    generated = []

    def recording_generate(*arguments, **options):
        generated.append(generate(*arguments, **options))
        return generated[0]

    monkeypatch.setattr(gpt2_lesson, "generate", recording_generate)
    assert gpt2_lesson.write(model, tokenizer).startswith("Emotion: i didnt feel well")
    (ids,) = generated[0].tolist()
    pairs = list(pairwise(ids))
    assert len(ids) == len(tokenizer.encode("Emotion: i didnt feel well")) + 100
    assert len(set(pairs)) == len(pairs)
