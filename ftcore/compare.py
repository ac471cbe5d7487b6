"""Compare ftcore with transformers, module by module: `python -m ftcore.compare`."""

from dataclasses import dataclass

from ftcore.cli import check_options, option, parse
from ftcore.output import cli_errors, guard_output


@dataclass
class CompareOptions:
    """Compare ftcore with transformers, module by module, forward and backward.

    Both load the same checkpoint, or the same random weights, and run on the same padded rows.
    Exit status 0: equal; 1: different; 2: invalid options or input. Requires transformers.
    """

    model: str | None = option(None, "directory or hub name of a checkpoint", metavar="DIR")
    config: str | None = option(
        None, "model configuration file, such as config.json; weights are random", metavar="FILE"
    )

    batch: int = option(2, "rows; all but the first are padded", group="Input", at_least=1)
    length: int | None = option(
        None,
        "tokens per row (default: 140, beyond the distances that T5 distinguishes, or GPT-2's n_positions)",
        at_least=1,
    )
    seed: int = option(0, "of the random tokens and weights", at_least=0, below=2**63)

    forward_only: bool = option(False, "do not compare gradients", group="Output")
    json: bool = option(False, "print a JSON object instead of the table")

    def __post_init__(self) -> None:
        check_options(self)
        if (self.model is None) == (self.config is None):
            raise ValueError("give either --model or --config" + (", not both" if self.model else ""))


if __name__ == "__main__":
    guard_output("ftcore.compare")
    parse(CompareOptions, command="ftcore.compare")  # --help and typing errors, before the import of torch

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import ftcore
from ftcore.checkpoints.checkpoint import load_model, model_from_config, resolve_directory, save_model
from ftcore.checkpoints.files import read_json
from ftcore.models import Model
from ftcore.models.gpt2 import GPT2Config, GPT2LMHeadModel
from ftcore.study import compare_modules, randomize_weights
from ftcore.study.compare import select_tokens
from ftcore.study.report import difference

MAX_LENGTH = 140  # T5 distinguishes distances up to 128


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(CompareOptions, argv, command="ftcore.compare")
    with TemporaryDirectory() as folder:
        with cli_errors("ftcore.compare"):
            transformers = import_transformers()
            directory = Path(folder) if options.model is None else resolve_directory(options.model)
            if options.config is not None:
                save_model(random_model(Path(options.config), options.seed), directory)
            ours = load_model(directory)
            architecture = ours.config.architecture
            theirs = getattr(transformers, architecture).from_pretrained(
                directory, dtype=torch.float32, attn_implementation="eager"
            )  # in eval mode
            inputs, their_inputs = make_inputs(ours, options)

        where = inputs["attention_mask"] if isinstance(ours, GPT2LMHeadModel) else None
        backward = not options.forward_only
        report = compare_modules(
            ours, theirs, inputs, reference_inputs=their_inputs, backward=backward, where=where
        )
        with torch.no_grad():  # without hooks, ftcore's attention uses the fused kernel
            logits, their_logits = ours(**inputs), theirs(**their_inputs).logits
        gap = difference(select_tokens(logits, where), select_tokens(their_logits, where))
        fused = gap._asdict() | {"equal": gap.relative <= report.rows[-1].tolerance}

    equal = report.equal and fused["equal"]
    if options.json:
        head = {"ftcore": ftcore.__version__, "transformers": transformers.__version__}
        print(json.dumps(head | report.to_dict() | {"fused": fused, "equal": equal}))
    else:
        print(
            f"{architecture} of ftcore {ftcore.__version__} and of transformers {transformers.__version__}\n"
            f"in float32, on {options.batch} rows, all but the first padded.\n"
            "ftcore's attention runs the explicit computation here, since it is hooked.\n"
        )
        print(report)
        print(
            "Without hooks, with the fused attention kernel: logits "
            f"{'equal' if fused['equal'] else 'differ'} (relative {fused['relative']:.1e})."
        )
    return 0 if equal else 1


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("the reference, transformers, is not installed: pip install transformers") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def random_model(path: Path, seed: int) -> Model:
    """The model of a configuration file, with `randomize_weights`."""
    if path.is_dir():
        raise ValueError(f"{path}: a directory, expected a file such as the config.json in it")
    model = model_from_config(read_json(path), where=str(path))
    randomize_weights(model, seed)
    return model


def make_inputs(model: Model, options: CompareOptions) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arguments of ftcore and of transformers: random ids, with more padding from row to row."""
    config, rows = model.config, options.batch
    length = options.length or MAX_LENGTH
    if isinstance(config, GPT2Config):
        if options.length is not None and length > config.n_positions:
            raise ValueError(f"--length is {length}, but the model has {config.n_positions} positions")
        length = min(length, config.n_positions)
    generator = torch.Generator().manual_seed(options.seed)
    inputs = {"input_ids": torch.randint(config.vocab_size, (rows, length), generator=generator)}
    theirs: dict[str, Any] = {"use_cache": False}
    padding = torch.arange(rows)[:, None] * length // (2 * rows)  # (B, 1), at most half a row
    if isinstance(config, GPT2Config):
        mask = (torch.arange(length) >= padding).long()  # on the left, as in generation
        # ftcore derives position ids from the mask; transformers' forward does not.
        theirs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    else:
        mask = (torch.arange(length) < length - padding).long()
        shorter = max(1, length * 3 // 4)
        inputs["decoder_input_ids"] = torch.randint(config.vocab_size, (rows, shorter), generator=generator)
    inputs["attention_mask"] = mask
    return inputs, inputs | theirs


if __name__ == "__main__":
    sys.exit(main())
