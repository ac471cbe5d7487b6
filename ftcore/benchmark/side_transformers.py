"""transformers' side: the functions of side_ftcore.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ftcore.benchmark.cases import Case
from ftcore.benchmark.order import Order
from ftcore.models.config import set_dropout_rates


def _library() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


version = _library().__version__


def cannot(order: Order) -> str | None:
    """int8 it takes from other libraries; fp32 is what it is compared with there."""
    return "trains in fp32 and bf16" if order.case.kind == "train" and order.dtype == "int8" else None


def convert(order: Order) -> None:
    """None needed."""


def load(order: Order) -> Any:
    transformers = _library()
    config = transformers.AutoConfig.from_pretrained(order.directory)
    set_dropout_rates(config, order.dropout)
    architecture = getattr(transformers, config.architectures[0])
    dtype = torch.bfloat16 if order.dtype == "bf16" and order.case.kind != "train" else torch.float32
    model = architecture.from_pretrained(order.directory, config=config, dtype=dtype)
    return model.to(order.device).eval()


def ready(model: Any, order: Order) -> Any:
    return model


def write(model: Any, prompts: Tensor, case: Case) -> list[list[int]]:
    ids = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        num_beams=case.beams,
        max_new_tokens=case.target,
        min_new_tokens=case.target,
        pad_token_id=0,
    )
    return ids[:, -case.target :].tolist()


def trainer(order: Order) -> Callable[[dict[str, Tensor]], float]:
    """The loop of its tutorials that go without its Trainer. Attention is the fused kernel, its default."""
    model = load(order).train()
    if order.compile:
        model.compile(dynamic=True)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=order.case.learning_rate,
        weight_decay=0.0,
        fused=None if order.case.plain else True,
    )
    device_type = torch.device(order.device).type

    def step(batch: dict[str, Tensor]) -> float:
        inputs = {name: batch[name].to(order.device) for name in ("input_ids", "attention_mask", "labels")}
        with torch.autocast(device_type, torch.bfloat16, enabled=order.dtype == "bf16"):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step
