"""Benchmark ftcore against other libraries on this machine: `python -m ftcore.bench`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from ftcore.benchmark.cases import CUDA_PLAN, DEFAULT_ROWS, ENGINES, GROWTH_MODELS, MAX_THREADS, ROWS
from ftcore.cli import check_options, option, parse
from ftcore.output import FAILED_RUN, cli_errors, did_you_mean, guard_output


@dataclass
class BenchOptions:
    """Benchmark ftcore against transformers and CTranslate2, where these are installed, and other engines.

    Each backend runs in its own process, with the same weights, inputs and threads; they take turns. The
    table has each backend's median, its time relative to ftcore's with the quartiles over the rounds, the
    share of the machine's roofline that ftcore reaches, and the peak memory of each process. Rows:

    load      read a checkpoint
    ready     load, prepare and generate two tokens in a new process, its imports aside; ready-first: the
              same without code that earlier processes have compiled and kept
    prefill   the first token after a long input      greedy    one row        greedy-b8   eight rows
    beam4     4 beams of one source                   beam4-b8  4 beams of eight sources
    train           a training step; transformers at its best: batches of similar length, fused AdamW
    train-tutorial  the same for ftcore; transformers as in its tutorials: padded to the limit, plain AdamW
    train-padded    both padded to the limit
    train-blocks    full blocks of random ids, GPT-2's of 1,024 tokens, with the share of a GPU's peak (MFU)

    Loading, prefill and generation use random ids, training the examples of --train.
    """

    model: list[str] | None = option(
        None,
        "names of published shapes, such as gpt2-medium or t5-base, with random weights; or directories "
        "(default: gpt2 t5-small, on CUDA also gpt2-xl)",
        metavar="NAME",
    )
    rows: list[str] | None = option(
        None,
        "names of the rows above, in the order to measure them (default: all but train-blocks; on CUDA a "
        "selection, the most important first)",
        metavar="NAME",
    )
    dtype: Literal["fp32", "bf16", "int8"] = option(
        "fp32",
        "number format; int8 is for generation only, and applies to the weights of ftcore --fast, "
        "CTranslate2 and the engines; the others use fp32",
    )
    fast: bool = option(False, "also measure ftcore --fast: prepared for decoding, faster training layers")
    compile: bool = option(
        False,
        "also measure ftcore --fast and --compile: compiled decoding steps and training blocks. transformers "
        "then trains compiled, too, and on CUDA decodes compiled with a static cache. Only ready-first "
        "counts the time of compiling",
    )
    engine: list[str] | None = option(
        None,
        "also measure an engine, generating on a CPU, with the Python of an environment of torch and "
        + "; ".join(f"{packages} ({name}=venv/bin/python)" for name, packages in ENGINES.items()),
        metavar="NAME=PYTHON",
    )
    runs: int | None = option(None, "timed rounds per row (default: 5, with --quick 3)", at_least=1)
    budget: int | None = option(
        None,
        "start no row after this many seconds, and list the rows left out",
        at_least=1,
        metavar="SECONDS",
    )
    quick: bool = option(False, "smoke test with short inputs and outputs; its figures are meaningless")

    train: str | None = option(
        None,
        "training file: emotion for GPT-2, qa for T5 (default: in examples/data)",
        group="Training rows",
        metavar="FILE",
    )
    tokenizer: str | None = option(
        None,
        "directory of the tokenizer (default: the model's; for a shape, that of weights/)",
        metavar="DIR",
    )
    dropout: float = option(0.0, "rate of all layers (the tutorials: 0.1); losses are compared only at 0")

    device: str = option("cpu", "cpu, cuda or cuda:N", group="Machine")
    threads: int | None = option(
        None, "threads of each backend (default: one per core)", at_least=1, below=MAX_THREADS + 1
    )

    json: bool = option(False, "print a JSON object instead of the table", group="Output")
    growth: str | None = option(
        None,
        "PNG file for a figure of time and memory against length, rows, beams and model size, which are "
        "measured instead of the rows above (default models: gpt2 gpt2-medium gpt2-large)",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        check_options(self)
        for row in self.rows or []:
            if row not in ROWS:
                raise ValueError(
                    f"--rows: unknown row {row!r}{did_you_mean(row, ROWS)}; rows: {', '.join(ROWS)}"
                )
        for name, python in self.engines.items():
            if name not in ENGINES:
                meant = did_you_mean(name, ENGINES)
                raise ValueError(f"--engine: unknown engine {name!r}{meant}; engines: {', '.join(ENGINES)}")
            if not Path(python).is_file():
                raise ValueError(
                    f"--engine {name}={python}: no such file, expected a Python with {ENGINES[name]}"
                )
        if self.dtype == "int8" and not (self.fast or self.compile):
            raise ValueError("--dtype int8 needs --fast: ftcore has int8 weights in its fast decoding only")
        if self.dtype == "int8" and self.rows and all(row.startswith("train") for row in self.rows):
            raise ValueError("--dtype int8 is for generation, and cannot train")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout is {self.dropout}, expected a rate from 0 to below 1")
        if (self.train or self.tokenizer) and len(self.models) > 1:
            raise ValueError("--train and --tokenizer are for one --model")
        if self.growth and self.rows:
            raise ValueError("--growth measures its own cases: leave out --rows")
        if self.growth and not self.growth.endswith(".png"):
            raise ValueError(f"--growth is {self.growth!r}, expected a name that ends with .png")

    @property
    def models(self) -> list[str]:
        return self.model or (GROWTH_MODELS if self.growth else ["gpt2", "t5-small"])

    @property
    def plan(self) -> list[tuple[str, list[str]]]:
        """Models and names of rows, in the order in which they are measured."""
        if self.device.startswith("cuda") and not (self.model or self.rows or self.growth):
            return CUDA_PLAN
        return [(name, self.rows or DEFAULT_ROWS) for name in self.models]

    @property
    def engines(self) -> dict[str, str]:
        """Paths of Python interpreters by engine."""
        pairs = (text.partition("=") for text in self.engine or [])
        return {name: python for name, _, python in pairs}

    @property
    def rounds(self) -> int:
        return self.runs or (3 if self.quick else 5)


if __name__ == "__main__":
    guard_output("ftcore.bench")
    parse(BenchOptions, command="ftcore.bench")  # --help and typing errors, before the import of torch

import json
import math
import sys
import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory

import torch

from ftcore.benchmark.backends import installed_backends
from ftcore.benchmark.cases import GPT2_CASES, SHAPES, T5_CASES, Case, Job, growth_cases
from ftcore.benchmark.inputs import read_batches, training_data, write_batches, write_model
from ftcore.benchmark.report import Row, draw_growth, library_versions, report, require_matplotlib
from ftcore.benchmark.roofline import Machine, generation_seconds, measure_machine, training_flops
from ftcore.benchmark.worker import measure, measure_in_new_processes
from ftcore.figures import save_figure
from ftcore.models import GPT2LMHeadModel, Model
from ftcore.training.inputs import find_device


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(BenchOptions, argv, command="ftcore.bench")
    rows: list[Row] = []
    budget = Budget(options.budget or math.inf)
    with cli_errors("ftcore.bench"):
        device = str(find_device(options.device))
        if options.growth:
            require_matplotlib(Path(options.growth))
        progress("measuring memory bandwidth and matrix products")
        threads = options.threads or torch.get_num_threads()
        machine = measure_machine(device, options.dtype, threads, quick=options.quick)
        for name, names in options.plan:
            with TemporaryDirectory(prefix="ftcore-bench-") as directory:
                rows += measure_model(name, names, options, machine, Path(directory), budget)
        if not rows:
            raise ValueError(f"--budget {options.budget} ended before the first row: allow more seconds")
        if options.growth:
            save_figure(draw_growth(rows), options.growth)
    if options.json:
        versions = {"torch": torch.__version__} | library_versions(rows)
        results = [row.to_dict() for row in rows]
        found = {
            "versions": versions,
            "machine": asdict(machine),
            "rows": results,
            "left_out": budget.left_out,
        }
        print(json.dumps(found, allow_nan=False))
    else:
        left_out = [f"Left out, after --budget {options.budget}: {', '.join(budget.left_out)}."]
        print("\n".join(report(rows, machine) + (["", *left_out] if budget.left_out else [])))
    return 0 if all(row.ours.seconds for row in rows) else FAILED_RUN


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Budget:
    """The time in which rows may start, and the rows left out after it."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.left_out: list[str] = []

    def leaves_out(self, *rows: str) -> bool:
        """Whether the time is used up; the rows are then left out."""
        is_used_up = time.monotonic() > self.end
        self.left_out += rows if is_used_up else ()
        return is_used_up


def measure_model(
    name: str, names: list[str], options: BenchOptions, machine: Machine, directory: Path, budget: Budget
) -> list[Row]:
    """Measure the cases called `names` of a published shape or a checkpoint, with files in `directory`.

    Raises:
        ValueError, OSError: no such model, or invalid training data.
    """
    if budget.leaves_out(*(f"{name} {row}" for row in names)):
        return []
    progress(f"{name}: writing the checkpoint")
    checkpoint, batches = directory / "model", directory / "batches.pt"
    model = write_model(name, checkpoint)
    cases = select_cases(model, names, options, is_first=name == options.models[0])
    job = Job(
        backend="",
        case=cases[0],
        checkpoint=str(checkpoint),
        vocab_size=model.config.vocab_size,
        dtype=options.dtype,
        device=machine.device,
        threads=machine.threads,
        compile=options.compile,
        batches=str(batches),
        dropout=options.dropout,
    )
    if any(case.kind == "train" for case in cases):
        tokenizer = options.tokenizer or (None if name in SHAPES else name)
        task, files = training_data(model, options.train, tokenizer)
        job = replace(job, task=task, train=files.train[0])
    backends = installed_backends(fast=options.fast, compile=options.compile)
    pythons = dict.fromkeys(backends, "") | options.engines
    conversions = [
        replace(job, backend=backend, python=python, case=Case("convert", "convert"))
        for backend, python in pythons.items()
        if backend == "ctranslate2" or backend in options.engines
    ]
    converted = measure(conversions, rounds=0)
    not_converted = {backend: result for backend, result in converted.items() if result.missing}

    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for number, case in enumerate(cases, start=1):
        if budget.leaves_out(f"{name} {case.name}"):
            continue
        progress(f"{name} {case.name} ({number} of {len(cases)})")
        cache = str(directory / "cache") if case.kind == "ready" else ""
        job, roofline, at_peak = replace(job, case=case, cache=cache), None, None
        if case.kind == "generate":
            roofline = generation_seconds(model, case, machine, options.dtype)
        elif case.kind == "train":
            write_batches(case, task, files, model, checkpoint, batches)
            trained = read_batches(batches, padded=False)
            roofline = training_flops(model, trained) / machine.flops
            at_peak = training_flops(model, trained, masked=True) / machine.peak if machine.peak else None
        jobs = [
            replace(job, backend=backend, python=python)
            for backend, python in pythons.items()
            if is_distinct(backend, case, machine.device) and backend not in not_converted
        ]
        run = measure_in_new_processes if case.kind == "ready" else measure
        others = run(jobs, options.rounds) | not_converted
        ours = {backend: others.pop(backend) for backend in [*others] if backend.startswith("ftcore")}
        for backend, result in ours.items():
            row = Row(name, parameters, job, {backend: result} | others, roofline, at_peak)
            progress(f"  {row.summary()}")
            rows.append(row)
    return rows


def is_distinct(backend: str, case: Case, device: str) -> bool:
    """Whether this case of a backend differs from that of ftcore's other ways to run."""
    if backend == "ftcore-compiled":  # on CUDA, a decoding step is a CUDA graph without it
        return case.kind == "train" or (case.kind != "load" and device == "cpu")
    if backend == "ftcore-fast":  # its training layers are for a CPU
        return case.kind not in ("load", "" if device == "cpu" else "train")
    return backend != "transformers-static" or (case.kind == "generate" and device != "cpu")


def select_cases(model: Model, names: list[str], options: BenchOptions, *, is_first: bool) -> list[Case]:
    is_gpt2 = isinstance(model, GPT2LMHeadModel)
    by_name = {case.name: case for case in (GPT2_CASES if is_gpt2 else T5_CASES)}
    cases = growth_cases(is_first=is_first) if options.growth else [by_name[name] for name in names]
    if options.dtype == "int8":
        cases = [case for case in cases if case.kind != "train"]
    if isinstance(model, GPT2LMHeadModel):
        cases = [case.fit(model.config.n_positions) for case in cases]
    return [case.quick() for case in cases] if options.quick else cases


if __name__ == "__main__":
    sys.exit(main())
