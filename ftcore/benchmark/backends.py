"""ftcore's side: the functions that every side has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftcore import __version__
from ftcore.benchmark.cases import Case
from ftcore.benchmark.order import Order
from ftcore.checkpoints.checkpoint import load_model
from ftcore.decoding import generate, prepare_for_decoding

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

version = __version__


def cannot(order: Order) -> str | None:
    """Why this side has nothing to do with an order, or None."""
    if order.dtype == "int8" and (order.case.kind == "train" or order.device != "cpu"):
        return "has int8 on the CPU, and not to train"
    return None


def convert(order: Order) -> None:
    """Files of a side's own, made beforehand: none."""


def load(order: Order) -> Any:
    """A directory becomes a model; on the CPU in float32, from which `ready` goes on."""
    dtype = torch.bfloat16 if order.dtype == "bf16" and order.device != "cpu" else torch.float32
    return load_model(order.directory, dtype=dtype, device=order.device)


def ready(model: Any, order: Order) -> Any:
    """The model as it generates best. On a GPU steps are graphs, and nothing is left to compile."""
    compile = order.compile and order.device == "cpu"
    return prepare_for_decoding(model, dtype=DTYPES[order.dtype], compile=compile)


def write(model: Any, prompts: Tensor, case: Case) -> list[list[int]]:
    """Exactly `case.target` new tokens behind each prompt, the best that `case.beams` beams find."""
    ids = generate(
        model,
        prompts,
        attention_mask=torch.ones_like(prompts),
        num_beams=case.beams,
        max_new_tokens=case.target,
        min_new_tokens=case.target,
        pad_token_id=0,
    )
    return ids[:, -case.target :].tolist()


def trainer(order: Order) -> Callable[[dict[str, Tensor]], float]:
    """A training step: batch in, loss out. It is `python -m ftcore.train`'s own."""
    from ftcore.train import take_step
    from ftcore.training.options import TrainOptions
    from ftcore.training.setup import prepare

    run = prepare(
        TrainOptions(
            model=order.directory,
            task=order.task,  # type: ignore[arg-type]
            train=order.train,
            output=str(Path(order.directory) / "run"),
            overwrite=True,
            batch_size=order.case.rows,
            max_source_length=order.case.source,
            max_target_length=order.case.target,
            lr=order.case.learning_rate,
            weight_decay=0.0,  # transformers' tutorials decay biases and norms too
            dropout=order.dropout,
            precision="bf16" if order.dtype == "bf16" else "fp32",
            device=order.device,
            compile=order.compile,
        )
    )
    return lambda batch: take_step(run, [batch], order.case.learning_rate)[0]
