"""Score a checkpoint: `python -m ftcore.evaluate`."""

from dataclasses import dataclass

from ftcore.cli import REQUIRED, option, parse
from ftcore.metrics import METRICS_HELP, metric_names
from ftcore.output import FAILED_RUN, cli_errors, guard_output, progress_bar
from ftcore.training.task_options import TaskOptions


@dataclass(kw_only=True)
class EvaluateOptions(TaskOptions):
    """Score a checkpoint on files: loss, token accuracy, perplexity and, where the task has gold answers,
    metrics of the generated answers.

    Exact match and F1 compare answers of task qa as in SQuAD, without case, punctuation and articles; those
    of other tasks exactly, as the tokenizer writes them. Answers come from greedy or beam search: of the
    checkpoint's generation_config.json only the special tokens are used. The task is the one that a run has
    saved with the checkpoint, or else qa, unless --task says another.
    """

    model: str = option(
        REQUIRED,
        "directory or hub name of a checkpoint",
        group="Input",
        metavar="DIR",
        also="model_name_or_path",
    )
    data: list[str] = option(
        REQUIRED,
        "files of records, or patterns such as 'data/*.json', scored together",
        metavar="FILE",
        also="validation_file test_file",
    )
    limit: int | None = option(None, "score only this many records from the start of the file", at_least=1)
    max_source_length: int = option(
        512, "tokens of the source; longer ones are cut", at_least=1, also="max_length max_seq_length"
    )
    max_target_length: int = option(
        128, "tokens of the target, and most tokens of a generated answer", at_least=1
    )
    num_beams: int = option(1, "beams of the generation", at_least=1)
    metrics: list[str] | None = option(None, METRICS_HELP, metavar="NAME")

    predictions: str | None = option(
        None, "file to write the answers to, a JSON object per line", group="Output", metavar="FILE"
    )
    json: bool = option(False, "print the scores as one JSON object")

    fast: bool = option(False, "generate the answers with a model prepared for it", group="Computation")
    batch_size: int = option(16, "examples per batch", at_least=1, also="per_device_eval_batch_size")
    device: str | None = option(None, "cpu, cuda or cuda:N (default: cuda if available)")

    def __post_init__(self) -> None:
        super().__post_init__()
        metric_names(self.metrics)


if __name__ == "__main__":
    guard_output("ftcore.evaluate")
    parse(EvaluateOptions, command="ftcore.evaluate")  # --help and errors, before the slow import of torch

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from ftcore.checkpoints.files import write_text
from ftcore.data import DataLoader, Task, load_task
from ftcore.metrics import MetricError
from ftcore.training.inputs import find_device, load_checkpoint, make_dataset, read_data
from ftcore.training.scoring import (
    answer_metrics,
    describe_answers,
    is_squad2,
    named,
    no_answer_metrics,
    score_answers,
    score_loss,
    try_metrics,
)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(EvaluateOptions, argv, command="ftcore.evaluate")
    with cli_errors("ftcore.evaluate"):
        device = find_device(options.device)
        model, tokenizer = load_checkpoint(options.model)
        model.to(device)
        task = options.make_task(load_task(options.model) or Task("qa"))
        data = read_data(task, options.data, model, tokenizer, options.limit)
        dataset = make_dataset(
            data,
            model,
            tokenizer,
            name="evaluation",
            max_source_length=options.max_source_length,
            max_target_length=options.max_target_length,
        )
        path = Path(options.predictions) if options.predictions else None
        if path and not path.absolute().parent.is_dir():
            raise ValueError(f"--predictions {path}: its directory does not exist")
        if path and not any(record.references for record in dataset.records):
            raise ValueError(f"--predictions {path}: the records have no gold answers, so none are written")
        try_metrics(options.metrics, dataset.records)
        loader = DataLoader(dataset, options.batch_size, pad_id=tokenizer.pad_id)
    decoder = model
    if options.fast:
        with cli_errors("ftcore.evaluate", (ValueError, ImportError)):  # ftcore.fast may be left out
            from ftcore.fast import prepare_for_decoding

            decoder = prepare_for_decoding(model)
        print("--fast is on: decoding with ftcore.fast", file=sys.stderr)

    with cli_errors("ftcore.evaluate", (FloatingPointError,), FAILED_RUN):
        loss = score_loss(model, progress_bar(loader, "loss", unit="batch", leave=False))
        answers = score_answers(
            decoder,
            tokenizer,
            dataset,
            batch_size=options.batch_size,
            progress=True,
            task=task,
            max_new_tokens=options.max_target_length,
            num_beams=options.num_beams,
        )
    if path:
        lines = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        with cli_errors("ftcore.evaluate"):
            write_text(path, lines)
    scores: dict[str, Any] = {
        "examples": len(dataset),
        "tokens": loss.tokens,
        "loss": loss.loss,
        "token_accuracy": loss.token_accuracy,
        "perplexity": loss.perplexity,
    }
    if answers:
        with cli_errors("ftcore.evaluate", (MetricError,), FAILED_RUN):
            scores |= answer_metrics(answers, options.metrics)
        squad2 = is_squad2(task, dataset)
        scores |= no_answer_metrics(answers, task) if squad2 else {}
        scores["answers"] = describe_answers(
            task, num_beams=options.num_beams, max_new_tokens=options.max_target_length, squad2=squad2
        )
    if options.json:
        scores["perplexity"] = scores["perplexity"] if math.isfinite(scores["perplexity"]) else None
        print(json.dumps(scores, allow_nan=False))
    else:
        for name, value in named(scores, task).items():
            form = {int: ",", float: ".4f"}.get(type(value), "")
            print(fill(f"{name:20} {value:{form}}", 80, subsequent_indent=" " * 21))
    return 0


if __name__ == "__main__":
    sys.exit(main())
