"""A finished run as one page, report.html: no network, no script, nothing besides the file itself.

Every text goes through `escape`, so that markup in a data set is shown and not obeyed. Should that ever fail,
the page forbids its browser to run or load anything.
"""

import platform
import random
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ftcore.checkpoints.files import write_atomically
from ftcore.cli import to_argv
from ftcore.training.curves import chart
from ftcore.training.launch import resume_command
from ftcore.training.options import CLONE, TrainOptions
from ftcore.training.preview import preview
from ftcore.training.setup import Run
from ftcore.training.state import sha256

_SHOWN = 6  # predictions on each side
_HOW_STARTED = {
    "output",
    "overwrite",
    "resume",
    "dry_run",
    "check",
    "parallel",
}  # options that change nothing it learns


@dataclass(frozen=True)
class Report:
    """What is on the page."""

    title: str
    summary: str
    metrics: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl
    predictions: Sequence[Mapping[str, Any]]  # of the best validation: the lines of predictions.jsonl
    data: Sequence[str]  # the figures of before the first step, in lines
    options: TrainOptions
    config: Mapping[str, Any]  # the model's
    versions: Mapping[str, str]
    fingerprints: Mapping[str, str]  # file -> SHA-256
    start: str = "python -m ftcore.train"  # the command line, up to the options


def save_report(run: Run) -> None:
    """Write the page of a run, as its directory stands, into that directory."""
    options, model = run.options, run.model
    look = preview(run.train_loader, model, run.tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    files = filter(None, (options.train, options.valid))
    report = Report(
        title=str(run.directory.path),
        summary=f"{options.model} ({model.config.architecture}, {parameters:,} parameters) learnt "
        f"{options.task} from {look.examples:,} examples in {run.progress.step:,} steps of "
        f"{run.train_loader.batch_sampler.batch_size * options.grad_accum}.",
        metrics=run.directory.read_metrics(),
        predictions=run.directory.read_predictions(),
        data=look.lines(),
        options=options,
        config=model.config.to_dict(),
        versions=versions(run.device),
        fingerprints={file: sha256(file) for file in files},
        start=resume_command(run.strategy),
    )
    page = render(report)
    write_atomically(run.directory.report, lambda beside: beside.write_bytes(page.encode(errors="replace")))


def command_of(options: TrainOptions, start: str = "python -m ftcore.train") -> str:
    """The command line that gives these options, but for where the run's files go; an option a line."""
    elsewhere = replace(options, output=None, overwrite=False, resume=False, parallel=None)
    return start + "".join(
        (" \\\n    " if word.startswith("--") else " ") + shlex.quote(word) for word in to_argv(elsewhere)
    )


def versions(device: torch.device) -> dict[str, str]:
    """What else the numbers depend on: packages, machine, and the state of the code in a clone."""
    found = {name: _version(name) for name in ("ftcore", "torch", "tokenizers", "numpy", "safetensors")}
    if revision := _git("rev-parse", "HEAD"):
        changed = _git("status", "--porcelain", "--untracked-files=no")
        found["git revision"] = revision + (", with changes" if changed else "")
    found["Python"] = platform.python_version()
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    found["machine"] = f"{sys.platform}, {machine}, {torch.get_num_threads()} threads"
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # ftcore itself may run from a clone
        return "not installed"


def _git(*arguments: str) -> str:
    """What git says about the clone that this code lies in; "" where it is none."""
    if not (CLONE / ".git").exists():
        return ""
    command = ["git", "-C", str(CLONE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


# ------------------------------------------------------------------------------------------------------------
# The page.


def render(report: Report) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(report.title)}</h1>
<p>{escape(report.summary)}</p>
{_scores(report)}
<h2>Curves</h2>
<div class="curves">{_curves(report.metrics)}</div>
{_predictions(report)}
<h2>Data</h2>
<p>The training set, as it was before the first step; lengths are in tokens.</p>
<pre tabindex="0">{escape(chr(10).join(report.data))}</pre>
<h2>Configuration</h2>
{_options(report.options)}
<details><summary>Model: config.json</summary>{_table(report.config.items(), "key", "value")}</details>
<h2>Reproduce</h2>
<p>The same command on the same files, versions and machine gives the same weights bit for bit.</p>
<pre tabindex="0" class="wrap">{escape(command_of(report.options, report.start))}</pre>
{_table(report.fingerprints.items(), "file", "SHA-256")}
{_table(report.versions.items(), "what", "version")}
</main>
</body>
</html>
"""


def _scores(report: Report) -> str:
    """The figures of the best validation, large."""
    step = report.predictions[0]["step"] if report.predictions else None
    lines = [line for line in report.metrics if "valid_loss" in line and step in (None, line["step"])]
    if not lines:
        return ""
    names = {
        "exact_match": "exact match",
        "f1": "F1",
        "valid_loss": "validation loss",
        "perplexity": "perplexity",
        "token_accuracy": "token accuracy",
    }
    cells = "".join(
        f"<div><dt>{label}</dt><dd>{lines[-1][name]:.4g}</dd></div>"
        for name, label in names.items()
        if name in lines[-1]
    )
    which = "last" if step is None else "best"
    return f'<p>The {which} validation, at step {lines[-1]["step"]:,}:</p>\n<dl class="scores">{cells}</dl>'


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    def points(name: str) -> list[tuple[float, float]]:
        return [(line["step"], line[name]) for line in metrics if name in line]

    def draw(title: str, logarithmic: bool = False, **curves: str) -> str:
        return chart(title, {label: points(name) for name, label in curves.items()}, logarithmic=logarithmic)

    return "".join(
        [
            draw("Loss (nats a token)", logarithmic=True, train_loss="training", valid_loss="validation"),
            draw("Answers (share)", exact_match="exact match", f1="F1"),
            draw("Token accuracy (share)", token_accuracy="token accuracy"),
            draw("Learning rate", learning_rate="learning rate"),
            draw("Gradient", logarithmic=True, grad_norm="norm"),
            draw("Speed (tokens a second)", tokens_per_second="tokens a second"),
        ]
    )


def _predictions(report: Report) -> str:
    """The worst and the best, by F1, of the best validation."""
    if not report.predictions:
        return ""
    # Among equals chance decides: neighbours in a file are often about one passage.
    shuffled = random.Random(0).sample(report.predictions, len(report.predictions))
    ranked = sorted(shuffled, key=lambda row: (row["f1"], row["exact_match"]))
    half = min(_SHOWN, -(-len(ranked) // 2))
    worst, best = ranked[:half], ranked[half:][: -half - 1 : -1]
    return (
        f"<h2>Predictions</h2>\n<p>Of {len(ranked):,} at step {ranked[0]['step']:,}, by F1.</p>\n"
        f'<h3>Worst</h3>\n<div class="cards">{"".join(map(_card, worst))}</div>\n'
        f'<h3>Best</h3>\n<div class="cards">{"".join(map(_card, best))}</div>'
    )


def _card(row: Mapping[str, Any]) -> str:
    gold = " | ".join(row["references"])
    return (
        f'<article><p class="source" dir="auto">{escape(row["source"])}</p><dl>'
        f'<dt>model</dt><dd dir="auto">{escape(row["prediction"]) or "<i>nothing</i>"}</dd>'
        f'<dt>gold</dt><dd dir="auto">{escape(gold)}</dd>'
        f"<dt>F1</dt><dd>{row['f1']:.2f}</dd></dl></article>"
    )


def _options(options: TrainOptions) -> str:
    """Those that are not the default, by the command line or the task, and folded up the others."""
    defaults = asdict(TrainOptions())
    values = {name: value for name, value in asdict(options).items() if name not in _HOW_STARTED}
    chosen = {name: value for name, value in values.items() if value != defaults[name]}
    others = {name: value for name, value in values.items() if name not in chosen}
    return (
        _table(chosen.items(), "option", "value")
        + f"<details><summary>Options at their defaults</summary>{_table(others.items(), 'option', 'value')}"
        "</details>"
    )


def _table(rows: Iterable[tuple[str, Any]], name: str, value: str) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_shown(what))}</td></tr>'
        for key, what in rows
    )
    return (
        f'<table><thead><tr><th scope="col">{name}</th><th scope="col">{value}</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


_STYLE = """
:root {
  --page: #fff; --text: #1d2129; --soft: #5a6270; --line: #d9dde3; --card: #f6f7f9; --first: #0b63c4;
  --second: #b3470b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181d; --text: #e6e9ee; --soft: #a2abb8; --line: #343a44; --card: #1e2229; --first: #6db3ff;
    --second: #ffa15c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1rem 1rem 3rem; }
h1 { margin: .5rem 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); font-size: 1.3rem; }
h3 { margin: 1.2rem 0 .5rem; font-size: 1.05rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
small, i { color: var(--soft); }
.scores { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0; }
.scores div { flex: 1 1 8rem; padding: .5rem .8rem; background: var(--card); border-radius: .5rem; }
.scores dt { color: var(--soft); font-size: .85rem; }
.scores dd { margin: 0; font-size: 1.5rem; font-weight: 600; }
.curves, .cards {
  display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
}
figure { display: flex; flex-direction: column; justify-content: space-between; margin: 0; }
figcaption { display: flex; flex-wrap: wrap; column-gap: .8rem; padding-bottom: .3rem; }
figcaption b { flex-basis: 100%; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); }
.axis { stroke: var(--soft); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve0 { stroke: var(--first); }
.curve1 { stroke: var(--second); stroke-dasharray: 7 4; }
.dot0 { fill: var(--first); }
.dot1 { fill: var(--second); }
.key0, .key1 { font-size: .9rem; white-space: nowrap; }
.key0::before, .key1::before {
  content: ""; display: inline-block; width: 1.4rem; margin-right: .3rem; vertical-align: middle;
  border-top: 3px solid var(--first);
}
.key1::before { border-top: 3px dashed var(--second); }
article { padding: .7rem .9rem; background: var(--card); border-radius: .5rem; overflow-wrap: anywhere; }
.source {
  max-height: 8.1rem; margin: 0 0 .6rem; overflow: auto; color: var(--soft); font-size: .9rem;
  white-space: pre-wrap;
}
article dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .8rem; margin: 0; }
article dt { color: var(--soft); }
article dd { margin: 0; white-space: pre-wrap; }
pre { padding: .8rem; background: var(--card); border-radius: .5rem; overflow-x: auto; }
pre { font-size: .82rem; line-height: 1.4; }
.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
table { width: 100%; margin: .6rem 0; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; }
th, td { overflow-wrap: anywhere; }
th { font-weight: 400; color: var(--soft); }
th:first-child { width: min(14rem, 45%); }
"""
