"""Score a checkpoint: `python -m ftcore.evaluate`."""

from dataclasses import dataclass
from typing import Literal

from ftcore.cli import REQUIRED, check_bounds, cli_errors, option, parse


@dataclass
class EvaluateOptions:
    """Score a checkpoint on a file: loss, token accuracy, perplexity and, where the task has gold answers,
    exact match and F1 of the answers that the model writes."""

    model: str = option(
        REQUIRED,
        "directory or hub name of a checkpoint",
        group="What to score, on what",
        metavar="DIR",
    )
    data: str = option(REQUIRED, "file of records", metavar="FILE")
    task: Literal["qa", "emotion", "lm", "text2text", "span-corruption"] = option(
        "qa",
        "how a file becomes examples",
    )
    limit: int | None = option(None, "score only this many records from the start of the file", at_least=1)
    max_source_length: int = option(512, "tokens of the source; longer ones are cut", at_least=1)
    max_target_length: int = option(
        128,
        "tokens of the target, and the most that an answer may have",
        at_least=1,
    )
    num_beams: int = option(1, "beams of the generation", at_least=1)

    predictions: str | None = option(
        None,
        "file to write the answers to: a JSON object a line",
        group="Output",
        metavar="FILE",
    )
    json: bool = option(False, "print the scores as one JSON object")

    batch_size: int = option(16, "examples at a time", group="Machine", at_least=1)
    device: str | None = option(None, "cpu, cuda or cuda:N (default: cuda where there is one)")

    def __post_init__(self) -> None:
        check_bounds(self)


if __name__ == "__main__":
    parse(EvaluateOptions, command="ftcore.evaluate")  # --help and typing errors, before the import of torch

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from ftcore.checkpoints.files import write_atomically
from ftcore.data import DataLoader, ExampleDataset
from ftcore.training.inputs import find_device, load_checkpoint, make_dataset, read_data
from ftcore.training.scoring import Answer, mean, score_answers, score_loss


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(EvaluateOptions, argv, command="ftcore.evaluate")
    with cli_errors("ftcore.evaluate"):
        device = find_device(options.device)
        model, tokenizer = load_checkpoint(options.model)
        model.to(device)
        data = read_data(options.task, options.data, model, tokenizer, options.limit)
        dataset = make_dataset(
            data,
            model,
            tokenizer,
            name="evaluation",
            max_source_length=options.max_source_length,
            max_target_length=options.max_target_length,
        )
        if options.predictions:
            check_predictions(Path(options.predictions), dataset)
        loader = DataLoader(dataset, options.batch_size, pad_id=tokenizer.pad_id)

    bar = tqdm(loader, "loss", unit="batch", leave=False)
    loss = score_loss(model, bar)
    answers = score_answers(
        model,
        tokenizer,
        dataset,
        batch_size=options.batch_size,
        progress=True,
        max_new_tokens=options.max_target_length,
        num_beams=options.num_beams,
    )
    scores = {
        "examples": len(dataset),
        "tokens": loss.tokens,
        "loss": loss.loss,
        "token_accuracy": loss.token_accuracy,
        "perplexity": loss.perplexity,
    }
    if answers:
        scores["exact_match"] = mean([answer.exact_match for answer in answers])
        scores["f1"] = mean([answer.f1 for answer in answers])
    if options.predictions:
        with cli_errors("ftcore.evaluate"):
            write_predictions(answers, Path(options.predictions))
    if options.json:
        print(json.dumps(scores))
    else:
        for name, value in scores.items():
            print(f"{name:15} {value:,}" if isinstance(value, int) else f"{name:15} {value:.4f}")
    return 0


def check_predictions(path: Path, dataset: ExampleDataset) -> None:
    """Find out before the work, not after it, that there will be nothing to write or nowhere to write it."""
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--predictions {path}: its directory does not exist")
    if not any(record.references for record in dataset.records):
        raise ValueError(f"--predictions {path}: the records have no gold answers, so none are written")


def write_predictions(answers: Sequence[Answer], path: Path) -> None:
    """One JSON object a line: source, prediction, references, exact_match, f1."""
    lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers]
    write_atomically(path, lambda beside: beside.write_text("".join(lines), encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
