"""One model, from its name to its rows: staged once, then case after case."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ftcore.benchmark.cases import GPT2_CASES, T5_CASES, Case
from ftcore.benchmark.growth import growth_cases
from ftcore.benchmark.machine import Machine
from ftcore.benchmark.options import BenchOptions
from ftcore.benchmark.order import Order
from ftcore.benchmark.rounds import convert, installed_sides, measure
from ftcore.benchmark.shapes import SHAPES
from ftcore.benchmark.inputs import read_batches, stage_batches, stage_model, stage_prompts, training_files
from ftcore.benchmark.report import Row
from ftcore.benchmark.roofline import generation_seconds, training_seconds
from ftcore.models import GPT2LMHeadModel, Model


def measure_model(
    name: str, options: BenchOptions, machine: Machine, place: Path, tell: Callable[[str], None]
) -> list[Row]:
    """Rows of a published shape or of a directory's model; `place` is an empty directory for their files.

    Raises:
        ValueError, OSError: there is no such model, or nothing to train it on.
    """
    tell(f"{name}: writing the model that all sides load")
    directory = place / "model"
    model = stage_model(name, directory)
    cases = _cases(model, name, options)
    order = Order(
        side="",
        case=cases[0],
        directory=str(directory),
        inputs=str(place / "inputs.safetensors"),
        dtype=options.dtype,
        device=machine.device,
        threads=machine.threads,
        compile=options.compile,
    )
    if any(case.kind == "train" for case in cases):
        tokenizer = options.tokenizer or (None if name in SHAPES else name)
        decoder_only = not model.config.is_encoder_decoder
        files = training_files(decoder_only=decoder_only, train=options.train, tokenizer=tokenizer)
        order = replace(order, task=files.task, train=str(files.train), dropout=options.dropout)
    sides = installed_sides()
    for side in sides:
        convert(replace(order, side=side))

    rows = []
    for number, case in enumerate(cases, start=1):
        tell(f"{name} {case.name} ({number} of {len(cases)})")
        inputs = Path(order.inputs)
        if case.kind == "generate":
            stage_prompts(case, model.config.vocab_size, inputs)
        elif case.kind == "train":
            stage_batches(case, files, model, directory, inputs)
        orders = [replace(order, side=side, case=case) for side in sides]
        row = Row(
            name,
            case,
            options.dtype,
            measure(orders, options.rounds),
            limit=_limit(model, case, inputs, machine, options.dtype),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            compiled=options.compile,
            dropout=options.dropout,
        )
        tell(row.summary())
        rows.append(row)
    return rows


def _cases(model: Model, name: str, options: BenchOptions) -> list[Case]:
    if options.growth:
        cases = growth_cases(is_first=name == options.models[0])
    else:
        cases = GPT2_CASES if isinstance(model, GPT2LMHeadModel) else T5_CASES
        cases = [case for case in cases if not options.rows or case.name in options.rows]
    if isinstance(model, GPT2LMHeadModel):
        cases = [case.fitted(model.config.n_positions) for case in cases]
    return [case.short() for case in cases] if options.quick else cases


def _limit(model: Model, case: Case, inputs: Path, machine: Machine, dtype: str) -> float | None:
    if case.kind == "generate":
        return generation_seconds(model, case, machine, dtype)
    if case.kind == "train":
        return training_seconds(model, read_batches(inputs, padded=False), machine)
    return None
