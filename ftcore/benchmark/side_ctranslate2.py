"""CTranslate2's side: the functions of side_ftcore.py. It generates, and does not train."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from ftcore.benchmark.cases import Case
from ftcore.benchmark.order import Order


def _library() -> Any:
    return import_module("ctranslate2")


version = _library().__version__

COMPUTE_TYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8_float32"}


class Words:
    """A tokenizer for its converter, which speaks of words where others speak of ids: one word an id."""

    def __init__(self, vocab_size: int, eos_id: int):
        self.words = [word(number) for number in range(vocab_size)]
        self.eos_token = word(eos_id)
        self.bos_token = self.pad_token = self.unk_token = word(0)

    def get_vocab(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.words)}

    def convert_ids_to_tokens(self, number: int) -> str:
        return self.words[number]


def word(number: int) -> str:
    return f"<{number}>"


def cannot(order: Order) -> str | None:
    compute_type = COMPUTE_TYPES[order.dtype]
    if order.case.kind == "train":
        return "does not train"
    if compute_type not in _library().get_supported_compute_types(order.device.split(":")[0]):
        return f"has no {compute_type} here"
    return None


def convert(order: Order) -> None:
    """Its own format, once for each precision."""
    converters: Any = import_module("ctranslate2.converters")
    config = json.loads((Path(order.directory) / "config.json").read_text(encoding="utf-8"))
    eos_id = config.get("eos_token_id") or 0

    class Converter(converters.TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> Words:
            return Words(config["vocab_size"], eos_id[0] if isinstance(eos_id, list) else eos_id)

    if not _converted(order).exists():
        Converter(order.directory).convert(str(_converted(order)), quantization=COMPUTE_TYPES[order.dtype])


def _converted(order: Order) -> Path:
    return Path(order.directory) / f"ctranslate2-{order.dtype}"


def load(order: Order) -> Any:
    is_t5 = (_converted(order) / "source_vocabulary.json").exists() or (
        _converted(order) / "shared_vocabulary.json"
    ).exists()
    device, _, index = order.device.partition(":")
    engine = _library().Translator if is_t5 else _library().Generator
    return engine(
        str(_converted(order)),
        device=device,
        device_index=int(index or 0),
        compute_type=COMPUTE_TYPES[order.dtype],
        intra_threads=order.threads,
    )


def ready(model: Any, order: Order) -> Any:
    return model


def write(model: Any, prompts: Tensor, case: Case) -> list[list[int]]:
    rows = [[word(number) for number in row] for row in prompts.tolist()]
    if isinstance(model, _library().Translator):
        results = model.translate_batch(
            rows,
            beam_size=case.beams,
            min_decoding_length=case.target,
            max_decoding_length=case.target,
            max_input_length=0,
        )
        return [_ids(result.hypotheses[0]) for result in results]
    results = model.generate_batch(
        rows,
        beam_size=case.beams,
        min_length=case.target,
        max_length=case.target,
        include_prompt_in_result=False,  # nor are its tokens counted in the lengths
    )
    return [_ids(result.sequences[0]) for result in results]


def _ids(words: list[str]) -> list[int]:
    return [int(name[1:-1]) for name in words]


def trainer(order: Order) -> Callable[[dict[str, Tensor]], float]:
    raise NotImplementedError("CTranslate2 does not train")
