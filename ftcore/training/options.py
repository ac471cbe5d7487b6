"""The options of `python -m ftcore.train`, and the settings of the runs that need none."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ftcore.cli import check_bounds, flag, option

SIZES = ("num_layers", "num_decoder_layers", "d_model", "d_kv", "d_ff", "num_heads")  # the model's

CLONE = Path(__file__).resolve().parents[2]  # where weights/ and examples/ lie, in a clone of the project


@dataclass
class TrainOptions:
    """Fine-tune or train T5 and GPT-2. Without options: teach weights/t5-mini to answer questions.

    A run's directory holds best/ and last/ (checkpoints that ftcore and transformers open), state/ (to go
    on with --resume), metrics.jsonl, predictions.jsonl, report.html, train_config.json and, with the extra
    plot installed, loss.png and tensorboard/.
    """

    model: str | None = option(
        None,
        "directory or hub name of a checkpoint (default: weights/t5-mini or gpt2-mini)",
        group="What to train, on what",
        metavar="DIR",
    )
    from_scratch: bool = option(
        False,
        "begin with random weights instead of the checkpoint's: --model then needs only config.json "
        "and a tokenizer",
    )
    task: Literal["qa", "emotion", "lm", "text2text", "span-corruption"] = option(
        "qa",
        "how a file becomes examples; lm (GPT-2) and span-corruption (T5) learn from plain text of any size",
    )
    train: str | None = option(
        None,
        "file to train on (default: the task's data set in examples/data)",
        metavar="FILE",
    )
    valid: str | None = option(
        None,
        "file to validate on (default: the task's in examples/data, or with --train a share of that "
        "file, see --valid-share)",
        metavar="FILE",
    )
    valid_share: float = option(0.1, "share of the training file that is held out where there is no --valid")
    output: str | None = option(
        None,
        "directory of the run (default: a new one below runs/)",
        metavar="DIR",
        resumable=True,
    )
    overwrite: bool = option(False, "replace the run that --output already holds", resumable=True)
    resume: bool = option(
        False,
        "go on with the run in --output, with the options it was started with",
        resumable=True,
    )
    dry_run: bool = option(
        False,
        "do not train: say what the run would learn from, how much memory it would take and how long "
        "an epoch, measured on two batches",
    )
    check: bool = option(
        False,
        "do not train: see on a few examples whether the run can be trusted (it overfits one batch, "
        "accumulates and resumes exactly, and neither padding nor the cache changes anything)",
    )

    num_layers: int | None = option(
        None,
        "blocks; without --num-decoder-layers of both of T5's stacks. With these sizes, what fits is "
        "loaded from the checkpoint, and the rest begins as random numbers",
        group="Changing the model",
        at_least=1,
        searchable=True,
    )
    num_decoder_layers: int | None = option(None, "blocks of T5's decoder", at_least=1, searchable=True)
    d_model: int | None = option(None, "width of the model", at_least=1, searchable=True)
    d_kv: int | None = option(
        None,
        "width of a head of T5; GPT-2 divides its width by its heads",
        at_least=1,
        searchable=True,
    )
    d_ff: int | None = option(None, "width of the feed-forward layers", at_least=1, searchable=True)
    num_heads: int | None = option(None, "attention heads of a layer", at_least=1, searchable=True)
    set: list[str] | None = option(
        None,
        "KEY=VALUE for every other key of config.json: n_positions=256 feed_forward_proj=gated-gelu",
        metavar="KEY=VALUE",
    )

    max_source_length: int = option(
        512,
        "tokens of the source; longer ones are cut, with a warning",
        group="Lengths",
        at_least=1,
    )
    max_target_length: int = option(128, "tokens of the target", at_least=1)
    pad_to_max_length: bool = option(False, "pad every batch to these lengths instead of its own longest row")
    packing: bool = option(
        False,
        "put as many examples into a row as these lengths have room for, none of which sees the "
        "others, instead of making batches of similar length: an example then meets others of any "
        "length",
    )

    epochs: int | None = option(
        None,
        "passes over the training set (default: 3)",
        group="Optimisation",
        at_least=1,
        searchable=True,
    )
    max_steps: int | None = option(
        None,
        "stop after this many optimizer steps, whatever --epochs says",
        at_least=1,
        searchable=True,
    )
    batch_size: int | None = option(
        None,
        "examples per forward pass (default: 8)",
        at_least=1,
        searchable=True,
    )
    grad_accum: int = option(
        1,
        "forward passes per optimizer step; the loss is that of one large batch, exactly",
        at_least=1,
        searchable=True,
    )
    optimizer: Literal["adamw", "adafactor"] = option(
        "adamw",
        "adafactor is what the published T5 was trained with; it keeps little more than the weights "
        "in memory. With it come T5's settings of --lr, --schedule, --warmup, --weight-decay and "
        "--clip-norm, unless given",
        searchable=True,
    )
    lr: float | None = option(
        None,
        "peak learning rate (default: of adamw 3e-4 for T5 and 5e-5 for GPT-2, with --relative-steps "
        "1e-2, with --lora-rank 3e-3 and 1e-3; of adafactor 1e-3)",
        at_least=0,
        searchable="log",
    )
    relative_steps: bool | None = option(
        None,
        "make --lr relative to the size of each weight matrix, as adafactor always does: 1e-2, say. "
        "For small T5s, whose matrices differ 60-fold in size",
        searchable=True,
    )
    schedule: Literal["linear", "cosine", "constant"] | None = option(
        None,
        "the learning rate after its warm-up (default: of adamw linear, of adafactor constant)",
        searchable=True,
    )
    warmup: int | float | None = option(
        None,
        "steps of warm-up, or below 1 the share of all steps (default: of adamw 0.05, of adafactor none)",
        at_least=0,
        searchable=True,
    )
    weight_decay: float | None = option(
        None,
        "on matrices only (default: of adamw 0.01, of adafactor none)",
        at_least=0,
        searchable="log",
    )
    clip_norm: float | None = option(
        None,
        "largest norm of the gradient of all parameters together; 0 for no limit (default: of adamw "
        "1, of adafactor no limit, since it limits each tensor's step)",
        at_least=0,
        searchable=True,
    )
    label_smoothing: float = option(
        0.0,
        "share of each target that is spread evenly over the vocabulary, in the training loss alone: "
        "the validation loss stays comparable",
        searchable=True,
    )
    dropout: float | None = option(
        None,
        "every dropout rate of the model (default: what its config.json says)",
        searchable=True,
    )
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32",
        "number format of the computation; the weights stay fp32. fp16 needs CUDA",
    )
    seed: int = option(0, "of dropout, data order and random weights", at_least=0)

    freeze: list[str] | None = option(
        None,
        "names of modules to leave as they are: encoder, decoder.block.0-3, transformer.h.0-5 "
        "transformer.wte; a tied weight is left as it is wherever it serves",
        group="Training a part",
        metavar="NAME",
    )
    lora_rank: int | None = option(
        None,
        "LoRA: leave all weights as they are and learn a change of this rank beside some of the "
        "matrices. best/ and last/ hold the sum of both, and the change alone in adapter/",
        at_least=1,
        searchable=True,
    )
    lora_alpha: float | None = option(
        None,
        "the change counts alpha / rank times (default: 2 * rank)",
        searchable=True,
    )
    lora_dropout: float = option(0.0, "of what the change reads", searchable=True)
    lora_targets: list[str] | None = option(
        None,
        "names of linear layers, or the ends of them, or all-linear (default: q v for T5, c_attn for GPT-2)",
        metavar="NAME",
    )

    eval_every: int | None = option(
        None,
        "steps between validations (default: one epoch)",
        group="Validation and saving",
        at_least=1,
        resumable=True,
    )
    eval_batch_size: int | None = option(
        None,
        "examples at a time in a validation (default: twice --batch-size)",
        at_least=1,
        resumable=True,
    )
    eval_answers: int = option(
        200,
        "validation examples that are answered by generating, where the task has answers",
        at_least=0,
    )
    num_beams: int = option(1, "beams of that generation", at_least=1)
    save_every: int | None = option(
        None,
        "steps between checkpoints/step-N (default: only best/ and last/)",
        at_least=1,
        resumable=True,
    )
    keep: int | None = option(
        None,
        "how many of checkpoints/step-N stay (default: all); best/ and last/ always do",
        at_least=1,
        resumable=True,
    )
    log_every: int = option(10, "steps between lines of metrics.jsonl", at_least=1, resumable=True)

    gradient_checkpointing: bool = option(
        False,
        "keep only the inputs of each block for the backward pass and compute the rest again: less "
        "memory, half as much time again, the same weights",
        group="Machine",
        resumable=True,
    )
    compile: bool = option(
        False,
        "let PyTorch's compiler write programs for the blocks, which takes the first step a minute: "
        "meant for GPUs; on a CPU it is not faster",
    )
    device: str | None = option(None, "cpu, cuda or cuda:N (default: cuda where there is one)")
    workers: int = option(0, "processes that prepare batches", at_least=0, resumable=True)
    parallel: Literal["ddp", "fsdp"] | None = option(
        None,
        "with torchrun --nproc-per-node N -m ftcore.train: N processes share each batch. With ddp all "
        "have the whole model, with fsdp each a part of its weights, gradients and moments (default: "
        "ddp)",
        resumable=True,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        for text in self.set or []:
            if not re.match("[^=]+=", text):
                raise ValueError(f"--set {text}: expected KEY=VALUE, as in --set n_positions=256")
        if self.packing and self.pad_to_max_length:
            raise ValueError("--packing contradicts --pad-to-max-length: packed rows need no fixed length")
        if self.seed >= 2**63:
            raise ValueError(f"--seed is {self.seed}, expected less than 2^63")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout is {self.dropout}, expected a rate from 0 to below 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"--label-smoothing is {self.label_smoothing}, expected from 0 to below 1")
        if not 0 < self.valid_share < 1:
            raise ValueError(f"--valid-share is {self.valid_share}, expected a share between 0 and 1")
        if self.optimizer == "adafactor" and self.relative_steps is False:
            raise ValueError(
                "--optimizer adafactor contradicts --no-relative-steps (relative_steps false, in a saved "
                "train_config.json): its steps are always relative"
            )
        self._check_lora()
        self._check_fsdp()
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run, --overwrite throws it away: choose one")
        for name in ("check", "dry_run"):
            if self.resume and getattr(self, name):
                raise ValueError(
                    f"{flag(name)} trains nothing, so that there is nothing to --resume: choose one"
                )
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output, the directory of the run to go on with")

    def _check_lora(self) -> None:
        if self.lora_rank is None:
            for name in ("lora_alpha", "lora_dropout", "lora_targets"):
                if getattr(self, name):
                    raise ValueError(f"{flag(name)} needs --lora-rank")
            return
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise ValueError(f"--lora-alpha is {self.lora_alpha}, expected more than 0")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora-dropout is {self.lora_dropout}, expected a rate from 0 to below 1")
        if self.optimizer == "adafactor" or self.relative_steps:
            option = "--optimizer adafactor" if self.optimizer == "adafactor" else "--relative-steps"
            raise ValueError(
                f"--lora-rank contradicts {option}: half of LoRA's matrices begin at 0, and steps relative "
                "to their size would hardly move them"
            )
        if self.freeze:
            raise ValueError("--lora-rank contradicts --freeze: with LoRA all of the model is left as it is")
        if self.from_scratch:
            raise ValueError(
                "--lora-rank contradicts --from-scratch: it is a small change of a trained model"
            )

    def _check_fsdp(self) -> None:
        if self.parallel != "fsdp":
            return
        if self.optimizer == "adafactor":
            raise ValueError(
                "--parallel fsdp contradicts --optimizer adafactor: torch's takes means of rows and columns, "
                "which lie on several processes. Take adamw, with --relative-steps if you like, or ddp"
            )
        if self.precision == "fp16":
            raise ValueError(
                "--parallel fsdp contradicts --precision fp16: torch's loss scaling does not see gradients "
                "that overflow on another process. Take bf16, or ddp"
            )


# The two runs that a clone of the project can make without any option but --task.
_EMBEDDED: dict[str, dict[str, Any]] = {
    "qa": {
        "model": "weights/t5-mini",
        "train": "examples/data/qa/train.json",
        "valid": "examples/data/qa/valid.json",
        "epochs": 5,
        "batch_size": 32,
        "lr": 1e-2,
        "relative_steps": True,
        "weight_decay": 0.0,
    },
    "emotion": {
        "model": "weights/gpt2-mini",
        "train": "examples/data/emotion/train.txt",
        "valid": "examples/data/emotion/valid.txt",
        "epochs": 3,
        "batch_size": 16,
        "lr": 5e-4,
    },
}
_FILES = ("model", "train", "valid")

# What an optimizer's settings are where nothing else says so. Adafactor's are those of T5's fine-tuning
# (Raffel et al. 2020, section 3.1.2, and their code).
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {
        "relative_steps": False,
        "schedule": "linear",
        "warmup": 0.05,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    },
    "adafactor": {
        "lr": 1e-3,
        "relative_steps": True,
        "schedule": "constant",
        "warmup": 0,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    },
}


def with_defaults(options: TrainOptions) -> TrainOptions:
    """Fill in what the command line left open and no checkpoint needs to be read for.

    Raises:
        ValueError: the task has no embedded data set, or this is no clone that holds it; says what to pass.
    """
    embedded = _EMBEDDED.get(options.task, {})
    if options.train is not None:  # one's own data is not validated on ours
        embedded = {key: value for key, value in embedded.items() if key != "valid"}
    if options.model is not None:  # the settings are the small model's
        embedded = {key: value for key, value in embedded.items() if key in ("train", "valid")}
    relative = options.optimizer == "adafactor" or options.relative_steps  # None for what is embedded
    if relative not in (None, embedded.get("relative_steps", False)):  # a rate is for one kind of steps
        embedded = {key: value for key, value in embedded.items() if key != "lr"}
    if options.lora_rank is not None:
        embedded = {key: value for key, value in embedded.items() if key not in ("lr", "relative_steps")}
    left_open = {field.name for field in fields(options) if getattr(options, field.name) is None}
    defaults = _OPTIMIZERS[options.optimizer] | embedded
    filled = {name: defaults[name] for name in left_open & defaults.keys()}
    for name in _FILES:
        if name in filled:
            filled[name] = _in_clone(filled[name], name)
    options = replace(options, **filled)
    for name in ("model", "train"):
        if getattr(options, name) is None:
            raise ValueError(f"--task {options.task} has no --{name} of its own: pass one")
    return replace(
        options,
        epochs=options.epochs or 3,
        batch_size=options.batch_size or 8,
        eval_batch_size=options.eval_batch_size or 2 * (options.batch_size or 8),
    )


def _in_clone(path: str, option: str) -> str:
    if not (CLONE / path).exists():
        raise ValueError(
            f"{path}, the default of --{option}, is not here: it comes with a clone of the project. "
            "Pass --model, --train and --output, or run this in a clone"
        )
    return path if Path(path).resolve() == CLONE / path else str(CLONE / path)
