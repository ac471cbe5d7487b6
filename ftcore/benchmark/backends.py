"""The libraries under test: ftcore (its plain modules, or its fast ones), transformers and CTranslate2."""

import importlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ftcore.benchmark.cases import Case, Job
from ftcore.checkpoints.checkpoint import load_model
from ftcore.checkpoints.files import read_json
from ftcore.models.config import set_dropout_rates

Step = Callable[[dict[str, Tensor]], float]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def call_generate(function: Callable[..., Tensor], prompts: Tensor, case: Case) -> list[list[int]]:
    """Call `generate`, whose arguments have the same names in ftcore and transformers.

    Returns the new ids of each row of the prompts (B, T).
    """
    ids = function(
        prompts,
        attention_mask=torch.ones_like(prompts),
        num_beams=case.beams,
        max_new_tokens=case.target,
        min_new_tokens=case.target,
        pad_token_id=0,
    )
    return ids[:, -case.target :].tolist()


class Backend:
    """How a library does what is measured, with the checkpoint and the case of its job.

    Imports what it needs when it is used: an engine's Python lacks what only the others need.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def load(self) -> Any:
        """Load the checkpoint."""
        raise NotImplementedError

    def prepare(self, model: Any) -> Any:
        """Do the one-time work before generating; returns the model to generate with."""
        return model

    def generate(self, model: Any, prompts: Tensor) -> list[list[int]]:
        """Generate `case.target` new ids per row from prompts, (rows, source), by greedy or beam search."""
        raise NotImplementedError

    def training_step(self) -> Step:
        """The function that trains on a batch (forward, backward, clipping, AdamW) and returns its loss."""
        raise NotImplementedError("does not train")


class FtcoreBackend(Backend):
    """ftcore as its commands run it: without options, with --fast ("ftcore-fast") or --compile."""

    def __init__(self, job: Job) -> None:
        from ftcore.decoding import generate

        super().__init__(job)
        self.search = generate
        self.fast = job.backend != "ftcore"
        self.compile = job.backend == "ftcore-compiled"

    def load(self) -> Any:
        # On the CPU, prepare_for_decoding converts from float32.
        bf16 = self.job.dtype == "bf16" and not (self.fast and self.job.device == "cpu")
        dtype = torch.bfloat16 if bf16 else torch.float32
        return load_model(self.job.checkpoint, dtype=dtype, device=self.job.device)

    def prepare(self, model: Any) -> Any:
        if not self.fast:
            return model
        from ftcore.fast import prepare_for_decoding

        return prepare_for_decoding(model, DTYPES[self.job.dtype], compile=self.compile)

    def generate(self, model: Any, prompts: Tensor) -> list[list[int]]:
        return call_generate(partial(self.search, model), prompts, self.job.case)

    def training_step(self) -> Step:
        from ftcore.train import prepare, take_step
        from ftcore.training.options import TrainOptions

        job, case = self.job, self.job.case
        target = case.target or 2  # of the run's examples, which GPT-2's random blocks replace
        options = TrainOptions(
            model=job.checkpoint,
            task=job.task,  # type: ignore[arg-type]
            train=[job.train],
            output=mkdtemp(prefix="run-", dir=job.checkpoint),  # a process locks its run's directory
            batch_size=case.rows,
            max_source_length=case.source + case.target - target,
            max_target_length=target,
            lr=case.learning_rate,
            weight_decay=0.0,  # transformers' AdamW would decay biases and norms too
            dropout=job.dropout,
            precision="bf16" if job.dtype == "bf16" else "fp32",
            device=job.device,
            fast=self.fast,
            compile=self.compile,
        )
        run = prepare(options)
        return lambda batch: take_step(run, [batch], case.learning_rate)[0]


class TransformersBackend(Backend):
    """transformers with its default attention, the fused kernel; trained without its Trainer."""

    def load(self) -> Any:
        import transformers

        config = transformers.AutoConfig.from_pretrained(self.job.checkpoint)
        set_dropout_rates(config, self.job.dropout)
        bf16 = self.job.dtype == "bf16" and self.job.case.kind != "train"  # training autocasts
        model = getattr(transformers, config.architectures[0]).from_pretrained(
            self.job.checkpoint, config=config, dtype=torch.bfloat16 if bf16 else torch.float32
        )
        return model.to(self.job.device).eval()

    def generate(self, model: Any, prompts: Tensor) -> list[list[int]]:
        return call_generate(model.generate, prompts, self.job.case)

    def training_step(self) -> Step:
        job = self.job
        model = self.load().train()
        if job.compile:
            model.compile(dynamic=None if job.case.random else True)  # blocks are all of one size
        fused = None if job.case.padded else True  # the tutorials, which pad, take AdamW's default
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=job.case.learning_rate, weight_decay=0.0, fused=fused
        )

        # Without a mask, attention takes the fused causal kernel, also where it is compiled.
        names = {"input_ids", "labels"} | ({"attention_mask"} if not job.case.random else set())

        def step(batch: dict[str, Tensor]) -> float:
            inputs = {name: tensor.to(job.device) for name, tensor in batch.items() if name in names}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=job.dtype == "bf16"):
                loss = model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return step


class StaticTransformersBackend(TransformersBackend):
    """transformers with a cache of fixed size, for which it compiles its decoding step on CUDA."""

    def generate(self, model: Any, prompts: Tensor) -> list[list[int]]:
        function = partial(model.generate, cache_implementation="static")
        return call_generate(function, prompts, self.job.case)


class CTranslate2Backend(Backend):
    """CTranslate2, which has its own checkpoint format, takes token strings and cannot train."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.library: Any = importlib.import_module("ctranslate2")
        self.compute_type = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8_float32"}[job.dtype]
        self.converted = Path(job.checkpoint) / "ctranslate2"
        self.config = read_json(Path(job.checkpoint) / "config.json")
        self.is_t5 = self.config["model_type"] == "t5"

    def convert(self) -> None:
        """Write the checkpoint in CTranslate2's format, with the tokens `<id>` in place of a tokenizer's."""
        eos_id = self.config.get("eos_token_id") or 0
        tokenizer = SimpleNamespace(
            get_vocab=lambda: {_token(number): number for number in range(self.job.vocab_size)},
            convert_ids_to_tokens=_token,
            eos_token=_token(eos_id[0] if isinstance(eos_id, list) else eos_id),
            bos_token=_token(0),
            pad_token=_token(0),
            unk_token=_token(0),
        )
        converters = importlib.import_module("ctranslate2.converters")
        converter = converters.TransformersConverter(self.job.checkpoint)
        converter.load_tokenizer = lambda *_, **__: tokenizer
        converter.convert(str(self.converted), quantization=self.compute_type)

    def load(self) -> Any:
        device, _, index = self.job.device.partition(":")
        if self.compute_type not in self.library.get_supported_compute_types(device):
            raise NotImplementedError(f"has no {self.compute_type} here")
        return (self.library.Translator if self.is_t5 else self.library.Generator)(
            str(self.converted),
            device=device,
            device_index=int(index or 0),
            compute_type=self.compute_type,
            intra_threads=self.job.threads,
        )

    def generate(self, model: Any, prompts: Tensor) -> list[list[int]]:
        case = self.job.case
        rows = [[_token(number) for number in row] for row in prompts.tolist()]
        if self.is_t5:
            lengths = {"min_decoding_length": case.target, "max_decoding_length": case.target}
            results = model.translate_batch(rows, beam_size=case.beams, max_input_length=0, **lengths)
            best = [result.hypotheses[0] for result in results]
        else:
            lengths = {"min_length": case.target, "max_length": case.target}  # without the prompt
            results = model.generate_batch(
                rows, beam_size=case.beams, include_prompt_in_result=False, **lengths
            )
            best = [result.sequences[0] for result in results]
        return [[int(token[1:-1]) for token in tokens] for tokens in best]


def _token(number: int) -> str:
    return f"<{number}>"


BACKENDS: dict[str, Any] = {
    "ftcore": FtcoreBackend,
    "ftcore-fast": FtcoreBackend,
    "ftcore-compiled": FtcoreBackend,
    "transformers": TransformersBackend,
    "transformers-static": StaticTransformersBackend,
    "ctranslate2": CTranslate2Backend,
}


def installed_backends(*, fast: bool, compile: bool) -> list[str]:
    """Names of the BACKENDS that can run here. CTranslate2 converts checkpoints through transformers."""
    ftcore = ["ftcore"] + ["ftcore-fast"] * (fast or compile) + ["ftcore-compiled"] * compile
    others = ["transformers"] + ["transformers-static"] * compile
    others += ["ctranslate2"] if find_spec("ctranslate2") else []
    return ftcore + (others if find_spec("transformers") else [])
