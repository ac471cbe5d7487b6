"""Is ftcore equal to transformers, and if not, where do they part? `python -m ftcore.compare`."""

from dataclasses import dataclass

from ftcore.cli import check_bounds, cli_errors, option, parse


@dataclass
class CompareOptions:
    """Compare ftcore with transformers, module by module, forward and backward.

    Both are built from the same checkpoint, or with the same random weights, and given the same padded rows.
    Exit status 0: equal; 1: not; 2: something is wrong with what was asked for. Needs transformers.
    """

    model: str | None = option(None, "directory or hub name of a checkpoint", metavar="DIR")
    config: str | None = option(
        None,
        "file of a model's configuration, as config.json: random weights",
        metavar="FILE",
    )

    batch: int = option(2, "rows; all but the first are padded", group="Input", at_least=1)
    length: int | None = option(
        None,
        "tokens a row (default: 140, beyond the distances that T5 tells apart, or what GPT-2's "
        "n_positions allows)",
        at_least=1,
    )
    seed: int = option(0, "of the random tokens and weights")

    forward_only: bool = option(False, "leave the gradients out", group="Output")
    json: bool = option(False, "print a JSON object instead of the table")

    def __post_init__(self) -> None:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either --model or --config" + (", not both" if self.model else ""))
        check_bounds(self)


if __name__ == "__main__":
    parse(CompareOptions, command="ftcore.compare")  # --help and typing errors, before the import of torch

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import ftcore
from ftcore.checkpoints.checkpoint import load_model, model_from_config, resolve_directory, save_model
from ftcore.data.files import read_text
from ftcore.models import Model
from ftcore.models.gpt2 import GPT2Config, GPT2LMHeadModel
from ftcore.study import compare_modules, randomize_weights
from ftcore.study.compare import counted
from ftcore.study.recording import first_tensor
from ftcore.study.report import Row, difference

FARTHEST = 140  # T5 tells distances up to 128 apart


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(CompareOptions, argv, command="ftcore.compare")
    with TemporaryDirectory() as folder:
        with cli_errors("ftcore.compare"):
            transformers = import_transformers()
            if options.config is not None:
                directory = Path(folder)
                save_model(random_model(Path(options.config), options.seed), directory)
            else:
                directory = resolve_directory(options.model or "")
            ours = load_model(directory)
            theirs = their_model(transformers, ours.config.architecture, directory)
            inputs, their_inputs = make_inputs(ours, options)

        where = inputs["attention_mask"] if isinstance(ours, GPT2LMHeadModel) else None
        report = compare_modules(
            ours,
            theirs,
            inputs,
            reference_inputs=their_inputs,
            backward=not options.forward_only,
            where=where,
        )
        fused = compare_fused(ours, theirs, inputs, their_inputs, where, report.rows[-1])

    if options.json:
        head = {"ftcore": ftcore.__version__, "transformers": transformers.__version__}
        print(
            json.dumps(head | report.to_dict() | {"fused": fused, "equal": report.equal and fused["equal"]})
        )
    else:
        print(
            f"{ours.config.architecture} of ftcore {ftcore.__version__} and of transformers "
            f"{transformers.__version__}, float32, {options.batch} rows, all but the first padded.\n"
            "ftcore's attention is watched here, so it takes its textbook way.\n"
        )
        print(report)
        print(
            f"Unwatched, with the fused kernel: relative difference of the logits {fused['relative']:.1e}, "
            f"{'equal' if fused['equal'] else 'differs'}."
        )
    return 0 if report.equal and fused["equal"] else 1


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError(
            'transformers is not installed, and is what to compare with: pip install -e ".[test]"'
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def random_model(path: Path, seed: int) -> Model:
    """The model that a configuration describes, with weights under which a mistake would show."""
    if path.is_dir():
        raise ValueError(f"{path}: a directory, expected a file such as the config.json in it")
    try:
        values = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}")
    model = model_from_config(values, where=str(path))
    randomize_weights(model, seed)
    return model


def their_model(transformers: Any, name: str, directory: Path) -> nn.Module:
    """The class that `name` is there. Eager attention is its textbook way."""
    load = getattr(transformers, name).from_pretrained
    return load(directory, dtype=torch.float32, attn_implementation="eager").eval()


def make_inputs(model: Model, options: CompareOptions) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Random rows, of which each but the first is padded a little more than the one before: ours, theirs."""
    config, rows = model.config, options.batch
    generator = torch.Generator().manual_seed(options.seed)
    length = options.length or FARTHEST
    if isinstance(config, GPT2Config):
        if options.length is not None and options.length > config.n_positions:
            raise ValueError(
                f"--length is {options.length}, but the model has {config.n_positions} positions"
            )
        length = min(length, config.n_positions)
    padding = torch.arange(rows)[:, None] * length // (2 * rows)  # (B, 1), half a row at most
    places = torch.arange(length)
    if isinstance(config, GPT2Config):  # on the left, as for generating
        mask = (places >= padding).long()
    else:
        mask = (places < length - padding).long()
    inputs = {
        "input_ids": torch.randint(config.vocab_size, (rows, length), generator=generator),
        "attention_mask": mask,
    }
    theirs = {"use_cache": False}
    if isinstance(config, GPT2Config):
        # Ours counts positions from the mask; its bare forward has to be told.
        return inputs, inputs | theirs | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    shorter = max(1, length * 3 // 4)
    inputs["decoder_input_ids"] = torch.randint(config.vocab_size, (rows, shorter), generator=generator)
    return inputs, inputs | theirs


@torch.no_grad()
def compare_fused(
    ours: nn.Module,
    theirs: nn.Module,
    inputs: dict[str, Tensor],
    their_inputs: dict[str, Any],
    where: Tensor | None,
    logits: Row,
) -> dict[str, Any]:
    """Our logits as everybody gets them, without hooks, within the tolerance of the table's last row."""
    mine, right = ours(**inputs), first_tensor(theirs(**their_inputs))
    assert right is not None
    apart = difference(counted(mine, where), counted(right, where))
    return apart._asdict() | {"equal": apart.relative <= logits.tolerance}


if __name__ == "__main__":
    sys.exit(main())
