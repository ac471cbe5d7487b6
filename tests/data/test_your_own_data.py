"""The page "Your own data": every form of file in its table is read, and every message is what it says."""

import gzip
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from ftcore.cli import parse
from ftcore.data import CORPUS_TASKS, load_tokenizer, read_corpus, read_records
from ftcore.training.options import TrainOptions

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "your_own_data.md").read_text(encoding="utf-8")


class Form(NamedTuple):
    number: str
    name: str
    files: str
    example: str
    options: str

    def paths(self) -> list[Path]:
        return [Path(name) for name in re.findall(r"[\w./-]+", self.files)]


def cells(line: str) -> list[str]:
    """The cells of a line of a table, without the marks of code."""
    texts = re.split(r"(?<!\\)\|", line)[1:-1]
    texts = [text.strip().replace(r"\|", "|") for text in texts]
    return [re.fullmatch(r"`?(.*?)`?", text, re.S)[1].replace("⏎", "\n").replace("⇥", "\t") for text in texts]


FORMS = [Form(*cells(line)) for line in re.findall(r"^\| \d+ \|.*$", PAGE, re.M)]
MISTAKES = [cells(line) for line in re.findall(r"^\| `.*$", PAGE, re.M)]
SUMS = [("2 + 2", "4"), ("2 + 3", "5")]


def write(form: Form) -> None:
    """Write the files of a form by its example: Python code that names the file, or the content."""
    if re.match(r"[\w.]+\(", form.example):
        write_by_code(form)
    else:
        for path in form.paths():
            path.write_text(form.example, encoding="utf-8")


def write_by_code(form: Form) -> None:
    names: dict[str, object] = {"gzip": gzip}
    if "gzip" not in form.example:
        datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
        feather = pytest.importorskip("pyarrow.feather")
        datasets.disable_progress_bars()
        names = {"Dataset": datasets.Dataset, "pyarrow": pyarrow, "write_feather": feather.write_feather}
    exec(re.search(r"^rows = .*$", PAGE, re.M)[0], names)
    exec(form.example, names)
    assert all(path.exists() for path in form.paths())


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if find_spec("datasets"):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_forms_are_numbered() -> None:
    assert [form.number for form in FORMS] == [str(number) for number in range(1, 22)]
    assert len(MISTAKES) == 8


def options_of(form: Form) -> TrainOptions:
    return parse(TrainOptions, [*shlex.split(form.options), "--output", "run"], command="ftcore.train")


RUNNING_TEXT = [form for form in FORMS if options_of(form).task in CORPUS_TASKS]


@pytest.mark.parametrize("form", RUNNING_TEXT, ids=lambda form: form.name)
def test_every_form_of_running_text_is_read(form: Form) -> None:
    write(form)
    options, tokenizer = options_of(form), load_tokenizer(ROOT / "weights" / "gpt2-mini")
    corpus = read_corpus(options.task, options.train, tokenizer, decoder_only=True)
    documents = tokenizer.decode(corpus.read(0, len(corpus)), skip_special_tokens=False)
    assert [text.strip() for text in documents.split("<|endoftext|>")] == ["Ada sews.", "Bo reads.", ""]


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form not in RUNNING_TEXT], ids=lambda form: form.name
)
def test_every_form_of_rows_is_read(form: Form, capsys: pytest.CaptureFixture) -> None:
    write(form)
    options = options_of(form)
    records = [
        (record.source, record.target)
        for record in read_records(options.make_task(), options.train, decoder_only=False)
    ]
    expected = {
        "text2text": SUMS * len(form.paths()),
        "emotion": [("Emotion: i feel calm", "joy"), ("Emotion: the train was late; again", "anger")],
        "qa": [("question: Who sews? context: Ada sews.", "Ada")],
        "chat": [("user: Hello\nassistant:", "Hi!")],
    }
    assert records == expected[options.task]
    said = "its fields are separated by" in capsys.readouterr().err
    assert said == (form.name in ("CSV with semicolons", "CSV with vertical bars"))


@pytest.mark.parametrize(("file", "content", "message"), MISTAKES)
def test_every_mistake_has_its_message(file: str, content: str, message: str) -> None:
    Path(file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_records("emotion", file, decoder_only=False)
    assert str(error.value).startswith((f"{file}, {message}", f"{file}: {message}"))
