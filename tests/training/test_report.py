"""report.html: one file that loads nothing, escapes all text, and can be reproduced."""

import re
import shlex
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftcore.train
from ftcore.cli import parse
from ftcore.training.options import TrainOptions
from ftcore.training.report import Report, command_line, render, versions
from ftcore.training.run_directory import RunDirectory
from tests.helpers import tiny_runs

VOID = {"meta", "br"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></main><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "<!-- ]]> --> &lt;b&gt; &amp;",
    "</style><style>@import 'http://example.org'</style>",
    "http://example.org/ javascript:alert(1)",
]
TEXTS = st.sampled_from(HOSTILE) | st.text(max_size=20)


class Page(HTMLParser):
    """The elements of a page and its text; fails where elements are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text += data


def a_report(**changes: Any) -> Report:
    """A small one; `changes` replace fields."""
    metrics = [
        {
            "step": 0,
            "valid_loss": 3.0,
            "exact_match": 0.0,
            "f1": 0.1,
            "perplexity": 20.0,
            "token_accuracy": 0.1,
        },
        {"step": 10, "train_loss": 2.0, "learning_rate": 0.01, "grad_norm": 2.5, "tokens_per_second": 100.0},
        {
            "step": 20,
            "valid_loss": 1.5,
            "exact_match": 0.4,
            "f1": 0.5,
            "perplexity": 4.5,
            "token_accuracy": 0.5,
        },
    ]
    rows = [
        {
            "step": 20,
            "source": "s",
            "prediction": "p",
            "references": ["g"],
            "exact_match": 0.0,
            "f1": number / 10,
        }
        for number in range(11)
    ]
    fields: dict[str, Any] = {
        "title": "runs/qa",
        "summary": "A trained model.",
        "metrics": metrics,
        "predictions": rows,
        "data": ["source     1 to 2 tokens"],
        "options": TrainOptions(train="train.json"),
        "config": {"d_model": 16},
        "versions": {"torch": "2"},
        "fingerprints": {"train.json": "abc"},
    }
    return Report(**fields | changes)


# --- hostile text


@settings(deadline=None, max_examples=60)
@given(source=TEXTS, prediction=TEXTS, reference=TEXTS, line=TEXTS, name=TEXTS)
def test_texts_do_not_become_markup(
    source: str, prediction: str, reference: str, line: str, name: str
) -> None:
    def filled(*texts: str) -> Page:
        source, prediction, reference, line, name = texts
        row = {"step": 20, "source": source, "prediction": prediction, "references": [reference]}
        page = render(
            a_report(
                title=name,
                summary=line,
                predictions=[row | {"exact_match": 0.0, "f1": 0.0}],
                data=[line],
                options=TrainOptions(train=name, freeze=[name]),
                config={name: line},
                versions={name: line},
                fingerprints={name: line},
            )
        )
        return Page(page)

    plain, hostile = filled("s", "p", "g", "l", "n"), filled(source, prediction or "p", reference, line, name)
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert hostile.elements == plain.elements  # attributes too
    for text in (source, prediction, reference, line, name):
        # HTML parsers replace line ends and NUL.
        assert all(part in hostile.text for part in re.split("[\r\n\0]", text))


# --- structure


def test_the_page_loads_nothing(curves: None) -> None:
    page = Page(render(a_report()))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "a",
        "video",
        "audio",
    }
    for _, attributes in page.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "action"}
        assert (attributes.get("xlink:href") or "#").startswith("#")  # markers within the same SVG
        assert not any(name.startswith("on") for name in attributes)
        styles = "".join(attributes.get(name) or "" for name in ("style", "clip-path"))
        assert not re.search(r"url\([^#]|@import|https?:", styles)
    assert not re.search(r"url\(|@import|https?:", page.style)
    [policy] = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_is_accessible(curves: None) -> None:
    page = Page(render(a_report()))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    [svg] = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert svg["role"] == "img" and "loss (nats per token)" in str(svg["aria-label"])
    assert dict(page.elements)["html"] == {"lang": "en"}
    assert "prefers-color-scheme: dark" in page.style
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    for tag, attributes in page.elements:
        assert tag != "th" or attributes["scope"] in ("row", "col")


def test_worst_and_best() -> None:
    text = Page(render(a_report())).text
    worst, best = text.split("Best")[0].split("Worst")[1], text.split("Best")[1].split("Data")[0]
    found = [re.findall(r"F1(\d\.\d\d)", part) for part in (worst, best)]
    assert found == [
        ["0.00", "0.10", "0.20", "0.30", "0.40", "0.50"],
        ["1.00", "0.90", "0.80", "0.70", "0.60"],
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_predictions_are_shown_once(count: int) -> None:
    text = render(a_report(predictions=a_report().predictions[:count]))
    assert text.count("<article>") == count


def test_a_run_without_metrics_has_a_page() -> None:
    page = Page(render(a_report(metrics=[], predictions=[])))
    assert "svg" not in dict(page.elements)


# --- reproducing the run


@settings(deadline=None, max_examples=60)
@given(
    train=st.text("ab c'\"$\\", min_size=1),
    lr=st.floats(1e-9, 1),
    relative=st.none() | st.booleans(),
    freeze=st.none() | st.lists(st.sampled_from(["encoder", "decoder.block.0-3"]), min_size=1),
    seed=st.integers(0, 2**62),
    padded=st.booleans(),
)
def test_the_command_line_gives_the_same_options(
    train: str, lr: float, relative: bool | None, freeze: list[str] | None, seed: int, padded: bool
) -> None:
    options = TrainOptions(
        train=train, lr=lr, relative_steps=relative, freeze=freeze, seed=seed, pad_to_max_length=padded
    )
    started = TrainOptions(**asdict(options) | {"output": "runs/x", "overwrite": True})
    words = shlex.split(command_line(started).replace("\\\n", ""))
    assert words[:3] == ["python", "-m", "ftcore.train"]
    assert parse(TrainOptions, words[3:], command="ftcore.train") == options


def test_versions() -> None:
    found = versions(torch.device("cpu"))
    assert found["torch"].startswith(torch.__version__.split("+")[0])
    assert {"ftcore", "tokenizers", "numpy", "Python", "machine"} <= found.keys()


# --- the command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny_runs.tiny_t5(folder / "t5")
    tiny_runs.tiny_gpt2(folder / "gpt2")
    tiny_runs.questions(folder / "qa.jsonl", 18)
    (folder / "emotion.txt").write_text("".join(f"i feel <b>{x};joy\ni am {x};anger\n" for x in "abcdef"))
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return folder


def train(files: Path, run: Path, model: str, task: str, data: str, *options: str) -> None:
    paths = [
        "--model",
        str(files / model),
        "--train",
        str(files / data),
        "--output",
        str(run),
        "--task",
        task,
    ]
    quick = [
        "--max-source-length",
        "48",
        "--max-steps",
        "4",
        "--eval-every",
        "2",
        "--batch-size",
        "4",
        "--lr",
        "0.01",
        "--log-every",
        "1",
    ]
    assert ftcore.train.main([*paths, *quick, "--max-target-length", "24", *options]) == 0


@pytest.mark.parametrize(
    ("model", "task", "data"),
    [
        ("t5", "qa", "qa.jsonl"),
        ("gpt2", "qa", "qa.jsonl"),
        ("gpt2", "emotion", "emotion.txt"),
        ("gpt2", "lm", "text.txt"),
        ("t5", "span-corruption", "text.txt"),
    ],
)
def test_every_task_has_a_report(
    files: Path, tmp_path: Path, model: str, task: str, data: str, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    train(files, run, model, task, data)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert {"article", "table"} <= {tag for tag, _ in page.elements}
    assert str(run) in page.text and str(files / data) in page.text
    shown = capsys.readouterr().out
    assert shown.count("    answer: ") >= 3  # samples at each validation


def test_the_command_of_the_report_reproduces_the_run(files: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(files, first, "t5", "qa", "qa.jsonl")
    page = (first / "report.html").read_text(encoding="utf-8")
    [command] = re.findall(r'class="wrap">(.*?)</pre>', page, re.S)
    words = shlex.split(command.replace("\\\n", ""))
    assert ftcore.train.main([*words[3:], "--output", str(second)]) == 0
    weights = [(run / "last" / "model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]


def test_predictions_belong_to_the_best_weights(files: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(files, run.path, "t5", "qa", "qa.jsonl", "--eval-every", "1")
    rows = run.read_predictions()
    best = max(
        (line for line in run.metrics_log.read() if "valid_loss" in line and line["step"]),
        key=lambda line: (line["exact_match"], -line["valid_loss"]),
    )
    assert {row["step"] for row in rows} == {best["step"]}
    assert sum(row["f1"] for row in rows) / len(rows) == pytest.approx(best["f1"])


def test_without_eval_answers_nothing_is_generated(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(files, tmp_path / "run", "gpt2", "emotion", "emotion.txt", "--eval-answers", "0")
    assert "answer:" not in capsys.readouterr().out
    assert "Predictions" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
