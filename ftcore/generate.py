"""Let a checkpoint write: `python -m ftcore.generate`."""

from dataclasses import dataclass, fields
from typing import Any

from ftcore.cli import REQUIRED, check_bounds, cli_errors, flag, option, parse, warn
from ftcore.decoding.arguments import Arguments


@dataclass
class GenerateOptions:
    """Let a checkpoint write: GPT-2 continues a prompt, T5 answers one.

    Give a prompt, or a context and a question, or a file of many. What is not set below, the checkpoint's
    generation_config.json decides.
    """

    model: str = option(REQUIRED, "directory or hub name of a checkpoint", metavar="DIR")

    prompt: str | None = option(None, "text to continue (GPT-2) or to answer (T5)", group="What to answer")
    context: str | None = option(None, "passage that holds the answer to --question")
    question: str | None = option(None, "question about --context")
    input: str | None = option(
        None,
        'file with a prompt a line, or with JSON lines that have the keys "prompt", or "context" and '
        '"question", or "source"',
        metavar="FILE",
    )

    max_new_tokens: int | None = option(
        None,
        "most tokens to write (default: 20)",
        group="How long, how well",
    )
    min_new_tokens: int | None = option(None, "fewest tokens to write")
    num_beams: int | None = option(None, "beams of beam search (default: 1, greedy search or sampling)")
    length_penalty: float | None = option(None, "of beam search: above 0 favours long answers (default: 1.0)")
    num_return_sequences: int | None = option(
        None,
        "answers to each prompt, from beams or samples (default: 1)",
    )
    no_repeat_ngram_size: int | None = option(
        None,
        "no run of that many tokens occurs twice (default: no such rule)",
    )
    repetition_penalty: float | None = option(None, "above 1.0 tokens that occurred become less likely")

    sample: bool = option(False, "draw each token instead of taking the best", group="Sampling")
    temperature: float | None = option(
        None,
        "below 1.0 closer to the best, above 1.0 more varied (default: 1.0)",
    )
    top_k: int | None = option(None, "draw among that many of the likeliest tokens, 0 for all (default: 50)")
    top_p: float | None = option(
        None,
        "draw among the likeliest that together reach this probability (default: 1.0)",
    )
    seed: int | None = option(None, "repeats the same draws (default: other ones every time)")

    stream: bool = option(False, "show the text while it is written", group="Output")
    json: bool = option(
        False,
        "print a JSON object for each prompt: what the model was given, and its text or texts",
    )
    output: str | None = option(None, "file to write to instead of the screen", metavar="FILE")

    batch_size: int = option(8, "prompts of --input at a time", group="Machine", at_least=1)
    device: str | None = option(None, "cpu, cuda or cuda:N (default: cuda where there is one)")

    def __post_init__(self) -> None:
        asked = [name for name in ("prompt", "input") if getattr(self, name) is not None]
        if (self.context is None) != (self.question is None):
            raise ValueError("--context and --question go together, one of them is missing")
        if self.context is not None:
            asked.append("context")
        if len(asked) != 1:
            what = "--prompt, --context with --question, or --input"
            raise ValueError(f"give one of {what}" + (", not several" if asked else ""))
        for name in ("temperature", "top_k", "top_p", "seed"):
            if getattr(self, name) is not None and not self.sample:
                raise ValueError(f"{flag(name)} needs --sample: without it nothing is drawn")
        if self.stream:
            for name in ("input", "num_beams", "num_return_sequences", "json", "output"):
                if getattr(self, name) not in (None, False, 1):
                    raise ValueError(f"--stream shows one answer as it grows; it cannot go with {flag(name)}")
        check_bounds(self)

    def arguments(self) -> dict[str, Any]:
        """What `ftcore.decoding.generate` is told; the rest is up to the checkpoint."""
        shared = {field.name for field in fields(self)} & {field.name for field in fields(Arguments)}
        given = {name: getattr(self, name) for name in shared if getattr(self, name) is not None}
        return given | ({"do_sample": True} if self.sample else {})


if __name__ == "__main__":
    parse(GenerateOptions, command="ftcore.generate")  # --help and typing errors, before the import of torch

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ftcore.checkpoints.files import write_atomically
from ftcore.data import prompt
from ftcore.data.files import Row, json_line_rows, listed, numbered_lines, read_text
from ftcore.decoding import generate_texts, prepare_for_decoding, stream_text
from ftcore.decoding.arguments import arguments_for
from ftcore.decoding.text import check_prompts
from ftcore.training.inputs import find_device, load_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(GenerateOptions, argv, command="ftcore.generate")
    arguments: dict[str, Any] = options.arguments()
    with short_warnings(), cli_errors("ftcore.generate"):
        if options.output and not Path(options.output).absolute().parent.is_dir():
            raise ValueError(f"--output {options.output}: its directory does not exist")
        device = find_device(options.device)
        model, tokenizer = load_checkpoint(options.model)
        model.to(device)
        prompts = read_prompts(options, decoder_only=not model.config.is_encoder_decoder)
        check_prompts(model, arguments_for(model, arguments), [tokenizer.encode(text) for text in prompts])
        if device.type == "cpu" and torch.backends.mkldnn.is_available():
            model = prepare_for_decoding(model)
    if options.seed is not None:
        arguments["generator"] = torch.Generator(device).manual_seed(options.seed)

    with short_warnings():
        if options.stream:
            stream_text(model, tokenizer, prompts[0], show, **arguments)
            print()
            return 0
        progress = options.input is not None
        answers = generate_texts(
            model, tokenizer, prompts, batch_size=options.batch_size, progress=progress, **arguments
        )
    lines = "".join(line + "\n" for line in formatted(prompts, answers, options))
    if options.output:
        with cli_errors("ftcore.generate"):
            write_atomically(Path(options.output), lambda path: path.write_text(lines, encoding="utf-8"))
    else:
        sys.stdout.write(lines)
    return 0


def read_prompts(options: GenerateOptions, *, decoder_only: bool) -> list[str]:
    """The texts that the model is given, from the command line or from the file."""
    if options.prompt is not None:
        return [options.prompt]
    if options.input is None:
        return [
            as_prompt(
                {"context": options.context, "question": options.question}, decoder_only, "command line"
            )
        ]
    path = Path(options.input)
    text = read_text(path)
    if path.suffix == ".jsonl" or text.lstrip().startswith('{"'):
        prompts = [as_prompt(row, decoder_only, where) for where, row in json_line_rows(path, text)]
    else:
        prompts = [line for _, line in numbered_lines(path, text)]
    if not prompts:
        raise ValueError(f"{path}: no prompts, expected one a line")
    return prompts


def as_prompt(fields: Row, decoder_only: bool, where: str) -> str:
    """What the model is given for a record: its prompt as it is, or the text of its task, as in training."""
    for task, keys in ((None, ["prompt"]), ("qa", ["context", "question"]), ("text2text", ["source"])):
        if all(isinstance(fields.get(key), str) for key in keys):
            chosen = {key: fields[key] for key in keys}
            return prompt(task, decoder_only=decoder_only, **chosen) if task else chosen["prompt"]
    raise ValueError(
        f'{where}: expected an object with the texts "prompt", or "context" and "question", or "source"'
        f" (keys found: {listed(fields) or 'none'})"
    )


def formatted(prompts: Sequence[str], answers: Sequence[Any], options: GenerateOptions) -> Iterator[str]:
    """The lines to print: JSON objects, or the answers themselves, those of a file on one line each."""
    for text, answer in zip(prompts, answers, strict=True):
        several = isinstance(answer, list)
        if options.json:
            yield json.dumps({"prompt": text, "texts" if several else "text": answer}, ensure_ascii=False)
        else:
            for single in answer if several else [answer]:
                yield " ".join(single.split("\n")) if options.input else single


def show(piece: str) -> None:
    print(piece, end="", flush=True)


@contextmanager
def short_warnings() -> Iterator[None]:
    """The library's warnings as one line each, without the place in the source that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: warn(str(message))
        yield


if __name__ == "__main__":
    sys.exit(main())
