"""report.html: a finished run as one page without scripts or external resources.

All text is escaped, so that markup in a data set is displayed literally. As a second barrier, a Content
Security Policy forbids scripts and loading anything.
"""

import platform
import random
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from importlib.metadata import version
from typing import Any

import torch

from ftcore import __version__
from ftcore.checkpoints.files import write_atomically
from ftcore.cli import to_argv
from ftcore.training.curves import PANELS, curves_svg, split_key
from ftcore.training.launch import start_command
from ftcore.training.options import TrainOptions
from ftcore.training.preview import preview
from ftcore.training.run import Run
from ftcore.training.run_files import CLONE, data_files
from ftcore.training.scoring import named
from ftcore.training.state import sha256

_PREDICTIONS = 6  # of the worst and of the best
# Options without influence on the result.
_PER_START = {"output", "overwrite", "resume", "dry_run", "check", "parallel"}

_NO_CURVES = "<p>Curves need matplotlib: <code>pip install matplotlib</code>.</p>"


@dataclass(frozen=True)
class Report:
    """Contents of the page."""

    title: str
    summary: str
    metrics: Sequence[Mapping[str, Any]]  # lines of metrics.jsonl, with the names of `scoring.named`
    predictions: Sequence[Mapping[str, Any]]  # of the best validation: lines of predictions.jsonl
    data: Sequence[str]  # lines of the data preview
    options: TrainOptions
    config: Mapping[str, Any]  # config.json of the model
    versions: Mapping[str, str]
    fingerprints: Mapping[str, str]  # file -> SHA-256
    start: str = "python -m ftcore.train"  # the command without options


def save_report(run: Run) -> None:
    """Write report.html into the run's directory."""
    options, model = run.options, run.model
    data = preview(run.train_loader, model, run.tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report = Report(
        title=str(run.directory.path),
        summary=f"{options.model} ({model.config.architecture}, {parameters:,} parameters), trained on "
        f"{options.task} with {data.examples:,} examples for {run.progress.step:,} steps of "
        f"{run.train_loader.batch_sampler.batch_size * options.grad_accum}.",
        metrics=[named(line, options.task) for line in run.directory.metrics_log.read()],
        predictions=run.directory.read_predictions(),
        data=data.lines(),
        options=options,
        config=model.config.to_dict(),
        versions=versions(run.device),
        fingerprints={file: sha256(file) for files in data_files(options).values() for file in files},
        start=start_command(run.strategy),
    )
    page = render(report).encode(errors="replace")
    write_atomically(run.directory.report, lambda temporary: temporary.write_bytes(page))


def command_line(options: TrainOptions, start: str = "python -m ftcore.train") -> str:
    """The command that reproduces these options except the output directory, one option per line."""
    options = replace(options, output=None, overwrite=False, resume=False, parallel=None)
    return start + "".join(
        (" \\\n    " if word.startswith("--") else " ") + shlex.quote(word) for word in to_argv(options)
    )


def versions(device: torch.device) -> dict[str, str]:
    """Versions of packages, machine and git revision that the numbers depend on."""
    found = {"ftcore": __version__}  # which may run from a clone
    found |= {name: version(name) for name in ("torch", "tokenizers", "numpy", "safetensors")}
    if revision := _git("rev-parse", "HEAD"):
        changed = _git("status", "--porcelain", "--untracked-files=no")
        found["git revision"] = revision + (", with changes" if changed else "")
    found["Python"] = platform.python_version()
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    found["machine"] = f"{sys.platform}, {machine}, {torch.get_num_threads()} threads"
    return found


def _git(*arguments: str) -> str:
    """Output of a git command in the clone that holds this code; "" outside of a clone."""
    if not (CLONE / ".git").exists():
        return ""
    command = ["git", "-C", str(CLONE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def render(report: Report) -> str:
    """The page as HTML."""
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
<div class="curves">{curves_svg(report.metrics) or _NO_CURVES}</div>
{_predictions(report)}
<h2>Data</h2>
<p>The training set before the first step; lengths are in tokens.</p>
<pre tabindex="0">{escape(chr(10).join(report.data))}</pre>
<h2>Configuration</h2>
{_options(report.options)}
<details><summary>Model: config.json</summary>{_table(report.config.items(), "key", "value")}</details>
<h2>Reproduce</h2>
<p>The same command on the same files, versions and machine gives the same weights bit for bit.</p>
<pre tabindex="0" class="wrap">{escape(command_line(report.options, report.start))}</pre>
{_table(report.fingerprints.items(), "file", "SHA-256")}
{_table(report.versions.items(), "environment", "value")}
</main>
</body>
</html>
"""


def _scores(report: Report) -> str:
    """Metrics of the best validation, in large type, one row for each validation set."""
    step = report.predictions[0]["step"] if report.predictions else None
    validations = [line for line in report.metrics if any(key.endswith("valid_loss") for key in line)]
    lines = [line for line in validations if step in (None, line["step"])]
    if not lines:
        return ""
    rows: dict[str, list[str]] = {}
    for key in sorted(lines[-1], key=lambda key: split_key(key)[1] in _LOSS):  # metrics of answers first
        (name, metric), value = split_key(key), lines[-1][key]
        if metric not in ("step", "epoch"):
            cell = f"<div><dt>{escape(_LABELS.get(metric, metric))}</dt><dd>{value:.4g}</dd></div>"
            rows.setdefault(name, []).append(cell)
    which = "last" if step is None else "best"
    return f"<p>The {which} validation, at step {lines[-1]['step']:,}:</p>" + "".join(
        (f"\n<h3>{escape(name)}</h3>" if name else "") + f'\n<dl class="scores">{"".join(cells)}</dl>'
        for name, cells in rows.items()
    )


_LOSS = {"valid_loss": "validation loss", "perplexity": "perplexity", "token_accuracy": "token accuracy"}
_LABELS = {key: label for labels in PANELS.values() for key, label in labels.items()} | _LOSS


def _predictions(report: Report) -> str:
    """The worst and the best predictions of the best validation, by F1."""
    if not report.predictions:
        return ""
    # Break ties at random: adjacent examples are often about the same passage.
    shuffled = random.Random(0).sample(report.predictions, len(report.predictions))
    ranked = sorted(shuffled, key=lambda row: (row["f1"], row["exact_match"]))
    half = min(_PREDICTIONS, -(-len(ranked) // 2))
    worst, best = ranked[:half], ranked[half:][: -half - 1 : -1]
    return (
        f"<h2>Predictions</h2>\n<p>Of {len(ranked):,} at step {ranked[0]['step']:,}, by F1.</p>\n"
        f'<h3>Worst</h3>\n<div class="cards">{"".join(map(_card, worst))}</div>\n'
        f'<h3>Best</h3>\n<div class="cards">{"".join(map(_card, best))}</div>'
    )


def _card(row: Mapping[str, Any]) -> str:
    gold = " | ".join(row["references"])
    of_set = f"<dt>set</dt><dd>{escape(str(row['set']))}</dd>" if "set" in row else ""
    return (
        f'<article><p class="source" dir="auto">{escape(row["source"])}</p><dl>'
        f"{of_set}"
        f'<dt>model</dt><dd dir="auto">{escape(row["prediction"]) or "<i>nothing</i>"}</dd>'
        f'<dt>gold</dt><dd dir="auto">{escape(gold)}</dd>'
        f"<dt>F1</dt><dd>{row['f1']:.2f}</dd></dl></article>"
    )


def _options(options: TrainOptions) -> str:
    """A table of the options with other values than the defaults; the others are folded."""
    defaults = asdict(TrainOptions())
    values = {name: value for name, value in asdict(options).items() if name not in _PER_START}
    chosen = _table([row for row in values.items() if row[1] != defaults[row[0]]], "option", "value")
    others = _table([row for row in values.items() if row[1] == defaults[row[0]]], "option", "value")
    return f"{chosen}<details><summary>Options at their defaults</summary>{others}</details>"


def _table(rows: Iterable[tuple[str, Any]], name: str, value: str) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_text(what))}</td></tr>'
        for key, what in rows
    )
    head = f'<tr><th scope="col">{name}</th><th scope="col">{value}</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


_STYLE = """
:root { --page: #fff; --text: #1d2129; --soft: #5a6270; --line: #d9dde3; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181d; --text: #e6e9ee; --soft: #a2abb8; --line: #343a44; --card: #1e2229; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1rem 1rem 3rem; overflow-wrap: anywhere; }
h1 { margin: .5rem 0; font-size: 1.7rem; }
h2 { margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); font-size: 1.3rem; }
h3 { margin: 1.2rem 0 .5rem; font-size: 1.05rem; }
p { margin: .5rem 0; }
i { color: var(--soft); }
.scores { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0; }
.scores div { flex: 1 1 8rem; padding: .5rem .8rem; background: var(--card); border-radius: .5rem; }
.scores dt { color: var(--soft); font-size: .85rem; }
.scores dd { margin: 0; font-size: 1.5rem; font-weight: 600; }
.curves { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 44rem; height: auto; }
svg text { fill: currentColor; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
article { padding: .7rem .9rem; background: var(--card); border-radius: .5rem; }
.source { max-height: 8.1rem; overflow: auto; color: var(--soft); font-size: .9rem; white-space: pre-wrap; }
article dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .8rem; margin: 0; }
article dt { color: var(--soft); }
article dd { margin: 0; white-space: pre-wrap; }
pre { padding: .8rem; background: var(--card); border-radius: .5rem; overflow-x: auto; font-size: .82rem; }
.wrap { white-space: pre-wrap; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
table { width: 100%; margin: .6rem 0; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 400; color: var(--soft); text-align: left; }
th:first-child { width: min(14rem, 45%); }
"""
