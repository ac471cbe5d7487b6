"""The options of a run with all defaults filled in: those of the model, the optimizer, and general ones."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcore.training.options import Schedule, TrainOptions
from ftcore.training.run_files import Files, clone_path


@dataclass(kw_only=True)
class RunOptions(TrainOptions):
    """The options of a run with every default filled in, see `resolve`."""

    model: str
    train: list[str]
    valid: list[str] | None
    epochs: int
    batch_size: int
    eval_batch_size: int
    lr: float
    relative_steps: bool
    schedule: Schedule
    warmup: float
    weight_decay: float
    clip_norm: float


# Defaults tuned for the models that come with a clone, whatever they are trained on.
_MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "weights/t5-mini": {
        "epochs": 5,
        "batch_size": 32,
        "lr": 5e-3,
        "relative_steps": True,
        "weight_decay": 0.0,
    },
    "weights/gpt2-mini": {"epochs": 3, "batch_size": 16, "lr": 5e-4},
}

# Defaults of each optimizer. Adafactor's are those of T5's fine-tuning (Raffel et al. 2020, section 3.1.2,
# and their code).
_OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
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


def resolve(options: TrainOptions, files: Files, *, is_t5: bool) -> RunOptions:
    """Fill in all defaults: those of the model, then the optimizer's, then general ones."""
    tuned = model_defaults(files.model)
    relative = options.optimizer == "adafactor" or options.relative_steps
    if relative not in (None, tuned.get("relative_steps", False)):  # the rate is for the other kind of steps
        tuned.pop("lr", None)
    if options.lora_rank is not None:
        tuned = {key: value for key, value in tuned.items() if key not in ("lr", "relative_steps")}
    given = {key: value for key, value in asdict(options).items() if value is not None}
    values: dict[str, Any] = {"epochs": 3, "batch_size": 8} | _OPTIMIZER_DEFAULTS[options.optimizer] | tuned
    values |= given | files._asdict()
    values.setdefault("eval_batch_size", 2 * values["batch_size"])
    values.setdefault("lr", _default_lr(is_t5, relative=values["relative_steps"], lora=options.lora_rank))
    return RunOptions(**values)


def model_defaults(model: str) -> dict[str, Any]:
    """Defaults tuned for this model; none for models that do not come with a clone."""
    here = (name for name in _MODEL_DEFAULTS if clone_path(name).resolve() == Path(model).resolve())
    return dict(_MODEL_DEFAULTS.get(next(here, ""), {}))


def _default_lr(is_t5: bool, *, relative: bool, lora: int | None) -> float:
    """Peak learning rate of AdamW."""
    if relative:
        return 1e-2
    if lora is not None:
        return 3e-3 if is_t5 else 1e-3
    return 3e-4 if is_t5 else 5e-5
