"""Generate text with a checkpoint: `python -m ftcore.generate`."""

from dataclasses import dataclass, fields
from typing import Any

from ftcore.cli import REQUIRED, check_bounds, option, parse
from ftcore.output import FAILED_RUN, cli_errors, flag, guard_output, warn


@dataclass
class GenerateOptions:
    """Generate text with a checkpoint: GPT-2 continues a prompt, T5 answers one.

    Give a prompt, or a context and a question, or a file of many. Options that are not given default to the
    checkpoint's generation_config.json.
    """

    model: str = option(REQUIRED, "directory or hub name of a checkpoint", metavar="DIR")

    prompt: str | None = option(None, "text to continue (GPT-2) or to answer (T5)", group="Input")
    context: str | None = option(None, "passage that contains the answer to --question")
    question: str | None = option(None, "question about --context")
    input: str | None = option(
        None,
        'file of one prompt per line, or JSON lines or CSV with "prompt", or "context" and "question", or '
        '"source"',
        metavar="FILE",
    )

    max_new_tokens: int | None = option(None, "most tokens to generate (default: 20)", group="Search")
    min_new_tokens: int | None = option(None, "fewest tokens to generate")
    num_beams: int | None = option(None, "beams of beam search (default: 1, greedy search or sampling)")
    length_penalty: float | None = option(None, "of beam search: above 0 favors long answers (default: 1.0)")
    num_return_sequences: int | None = option(
        None, "answers to each prompt, from beams or samples (default: 1)"
    )
    no_repeat_ngram_size: int | None = option(
        None, "no n-gram of that many tokens occurs twice (default: off)"
    )
    repetition_penalty: float | None = option(None, "above 1.0 tokens that occurred become less likely")
    stop: list[str] | None = option(None, "end before any of these texts", metavar="TEXT")

    sample: bool = option(False, "sample each token instead of taking the most likely", group="Sampling")
    temperature: float | None = option(
        None, "below 1.0 closer to the most likely, above 1.0 more varied (default: 1.0)"
    )
    top_k: int | None = option(None, "sample from the N most likely tokens, 0 for all (default: 50)")
    top_p: float | None = option(
        None, "sample from the most likely tokens that together reach this probability (default: 1.0)"
    )
    seed: int | None = option(
        None,
        "random seed, of the n-th prompt of --input SEED + n - 1 (default: a different one every time)",
        at_least=0,
        below=2**63,
    )

    stream: bool = option(False, "print the text as it is generated", group="Output")
    keep_special_tokens: bool = option(False, "print special tokens, such as T5's <extra_id_0>, too")
    json: bool = option(False, "print a JSON object per prompt, with the model's input and its text or texts")
    scores: bool = option(
        False, "with --json: the score of each text, its tokens and their log-probabilities"
    )
    output: str | None = option(None, "file to write instead of printing", metavar="FILE")

    fast: bool = option(
        False, "prepare the model first: packed weights on a CPU, CUDA graphs on a GPU", group="Computation"
    )
    compile: bool = option(False, "--fast, and compile the step to C++ (half a minute); for a CPU")
    batch_size: int = option(8, "prompts of --input per batch", at_least=1)
    device: str | None = option(None, "cpu, cuda or cuda:N (default: cuda if available)")

    def __post_init__(self) -> None:
        if (self.context is None) != (self.question is None):
            raise ValueError("--context and --question go together, one of them is missing")
        inputs = [value for value in (self.prompt, self.context, self.input) if value is not None]
        if len(inputs) != 1:
            choices = "--prompt, --context with --question, or --input"
            raise ValueError(f"give one of {choices}" + (", not several" if inputs else ""))
        for name in ("temperature", "top_k", "top_p", "seed"):
            if getattr(self, name) is not None and not self.sample:
                raise ValueError(f"{flag(name)} needs --sample")
        if self.scores and not self.json:
            raise ValueError("--scores needs --json")
        if self.stream:
            for name in ("input", "num_beams", "num_return_sequences", "json", "output"):
                if getattr(self, name) not in (None, False, 1):
                    raise ValueError(f"--stream prints a single answer, it cannot go with {flag(name)}")
        check_bounds(self)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `ftcore.decoding.generate` that were given."""
        shared = {field.name for field in fields(self)} & {field.name for field in fields(Arguments)}
        given = {name: getattr(self, name) for name in shared if getattr(self, name) is not None}
        given |= {"stop_strings": self.stop} if self.stop is not None else {}
        return given | ({"do_sample": True} if self.sample else {})


if __name__ == "__main__":
    guard_output("ftcore.generate")
    parse(GenerateOptions, command="ftcore.generate")  # --help and errors, before the slow import of torch

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ftcore.checkpoints.files import write_text
from ftcore.data import prompt
from ftcore.data.files import Row, listed, read_rows
from ftcore.decoding import ScoredText, generate_texts, stream_text
from ftcore.decoding.arguments import SPECIAL_TOKENS, Arguments, arguments_for
from ftcore.decoding.text import checked_prompts
from ftcore.training.inputs import find_device, load_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(GenerateOptions, argv, command="ftcore.generate")
    arguments = options.arguments()
    with short_warnings(), cli_errors("ftcore.generate"):
        if options.output and not Path(options.output).absolute().parent.is_dir():
            raise ValueError(f"--output {options.output}: its directory does not exist")
        device = find_device(options.device)
        model, tokenizer = load_checkpoint(options.model)
        model.to(device)
        prompts = read_prompts(options, decoder_only=not model.config.is_encoder_decoder)
        chosen = arguments_for(model, arguments)
        checked_prompts(model, chosen, [tokenizer.encode(text) for text in prompts])
    own = [name for name, file in chosen.origin.items() if file and name not in SPECIAL_TOKENS]
    if settings := chosen.changed(own):
        print(f"the checkpoint sets {', '.join(settings)}", file=sys.stderr)
    if options.fast or options.compile:
        with cli_errors("ftcore.generate", (ValueError, ImportError)):  # ftcore.fast may be left out
            from ftcore.fast import prepare_for_decoding

            model = prepare_for_decoding(model, compile=options.compile)
        print("--fast is on: decoding with ftcore.fast", file=sys.stderr)
    arguments["skip_special_tokens"] = not options.keep_special_tokens
    arguments["generator"] = generators(options.seed, len(prompts), device)

    # Prompts and arguments are valid: what fails now are logits that are not finite or leave no token.
    with short_warnings(), cli_errors("ftcore.generate", (ArithmeticError, ValueError), FAILED_RUN):
        if options.stream:
            stream_text(model, tokenizer, prompts[0], partial(print, end="", flush=True), **arguments)
            print()
            return 0
        arguments |= {
            "return_scores": options.scores,
            "batch_size": options.batch_size,
            "progress": options.input is not None,
        }
        answers = generate_texts(model, tokenizer, prompts, **arguments)
    lines = "".join(line + "\n" for line in formatted(prompts, answers, options))
    if options.output:
        with cli_errors("ftcore.generate"):
            write_text(Path(options.output), lines)
    else:
        sys.stdout.write(lines)
    return 0


def generators(seed: int | None, count: int, device: torch.device) -> list[torch.Generator] | None:
    """A random number generator for each prompt, with the seeds `seed`, `seed` + 1, ...; None without one."""
    if seed is None:
        return None
    return [torch.Generator(device).manual_seed(seed + number) for number in range(count)]


def read_prompts(options: GenerateOptions, *, decoder_only: bool) -> list[str]:
    """The model's input texts, from the command line or from the file."""
    if options.prompt is not None:
        return [options.prompt]
    if options.input is None:
        record = {"context": options.context, "question": options.question}
        return [as_prompt(record, decoder_only, "command line")]
    path = Path(options.input)
    expected = "one prompt per line, or JSON lines or CSV"
    rows = read_rows(path, expected=expected, line_row=lambda line, where: {"prompt": line})
    prompts = [as_prompt(row, decoder_only, where) for where, row in rows]
    if not prompts:
        raise ValueError(f"{path}: no prompts, expected one per line")
    return prompts


def as_prompt(fields: Row, decoder_only: bool, where: str) -> str:
    """The model's input text for a record: its prompt, or its task's text, as in training."""
    for task, keys in ((None, ["prompt"]), ("qa", ["context", "question"]), ("text2text", ["source"])):
        if all(isinstance(fields.get(key), str) for key in keys):
            chosen = {key: fields[key] for key in keys}
            return prompt(task, decoder_only=decoder_only, **chosen) if task else chosen["prompt"]
    raise ValueError(
        f'{where}: expected an object with the texts "prompt", or "context" and "question", or "source"'
        f" (keys found: {listed(fields) or 'none'})"
    )


def formatted(prompts: Sequence[str], answers: Sequence[Any], options: GenerateOptions) -> Iterator[str]:
    """The lines to print: JSON objects, or the answers themselves, one line each for --input."""
    for text, answer in zip(prompts, answers, strict=True):
        if options.json:
            yield json.dumps({"prompt": text} | json_fields(answer), ensure_ascii=False)
        else:
            for single in answer if isinstance(answer, list) else [answer]:
                yield " ".join(single.split("\n")) if options.input else single


def json_fields(answer: Any) -> dict[str, Any]:
    """The text or texts of a prompt, and their scores if they have any, with the keys of a JSON object."""
    if isinstance(answer, ScoredText):
        return answer._asdict()
    if not isinstance(answer, list):
        return {"text": answer}
    if not isinstance(answer[0], ScoredText):
        return {"texts": answer}
    texts, *columns = zip(*answer, strict=True)
    return {"texts": texts} | dict(zip(("scores", "tokens", "token_scores"), columns, strict=True))


@contextmanager
def short_warnings() -> Iterator[None]:
    """Print the library's warnings as one line each, without the source location."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: warn(str(message))
        yield


if __name__ == "__main__":
    sys.exit(main())
