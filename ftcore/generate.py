"""Let a checkpoint write: `python -m ftcore.generate`."""

from ftcore.command import clear_errors, parse, warn
from ftcore.decoding.options import GenerateOptions

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

from ftcore.data import prompt
from ftcore.data.files import Row, json_line_rows, listed, numbered_lines, read_text
from ftcore.decoding import generate_texts, prepare_for_decoding, stream_text
from ftcore.decoding.arguments import arguments_for
from ftcore.decoding.text import check_prompts
from ftcore.models.atomic import write_atomically
from ftcore.training.inputs import find_device, load_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(GenerateOptions, argv, command="ftcore.generate")
    arguments: dict[str, Any] = options.arguments()
    with short_warnings(), clear_errors("ftcore.generate"):
        if options.output and not Path(options.output).absolute().parent.is_dir():
            raise ValueError(f"--output {options.output}: its directory does not exist")
        device = find_device(options.device)
        model, tokenizer = load_checkpoint(options.model)
        model.to(device)
        prompts = read_prompts(options, causal=not model.config.is_encoder_decoder)
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
        with clear_errors("ftcore.generate"):
            write_atomically(Path(options.output), lambda path: path.write_text(lines, encoding="utf-8"))
    else:
        sys.stdout.write(lines)
    return 0


def read_prompts(options: GenerateOptions, *, causal: bool) -> list[str]:
    """The texts that the model is given, from the command line or from the file."""
    if options.prompt is not None:
        return [options.prompt]
    if options.input is None:
        return [as_prompt({"context": options.context, "question": options.question}, causal, "command line")]
    path = Path(options.input)
    text = read_text(path)
    if path.suffix == ".jsonl" or text.lstrip().startswith('{"'):
        prompts = [as_prompt(row, causal, where) for where, row in json_line_rows(path, text)]
    else:
        prompts = [line for _, line in numbered_lines(path, text)]
    if not prompts:
        raise ValueError(f"{path}: no prompts, expected one a line")
    return prompts


def as_prompt(fields: Row, causal: bool, where: str) -> str:
    """What the model is given for a record: its prompt as it is, or the text of its task, as in training."""
    for task, keys in ((None, ["prompt"]), ("qa", ["context", "question"]), ("text2text", ["source"])):
        if all(isinstance(fields.get(key), str) for key in keys):
            chosen = {key: fields[key] for key in keys}
            return prompt(task, causal=causal, **chosen) if task else chosen["prompt"]
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
