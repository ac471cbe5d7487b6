"""Generate text with a checkpoint: `python -m ftcore.generate`."""

from dataclasses import dataclass, fields
from typing import Any

from ftcore.cli import REQUIRED, option, parse
from ftcore.output import FAILED_RUN, cli_errors, flag, guard_output, warn
from ftcore.training.task_options import TaskOptions


@dataclass(kw_only=True)
class GenerateOptions(TaskOptions):
    """Generate text with a checkpoint: GPT-2 continues a text, T5 answers one.

    A run's checkpoint knows its task. Give what a row of its files has (TEXT, or --context and --question, or
    --field), and the model's input is built as in training. --prompt is the model's input as it is, without a
    task. --input has many of either. Options that are not given default to the checkpoint's
    generation_config.json.
    """

    model: str = option(
        REQUIRED,
        "directory or hub name of a checkpoint",
        group="Input",
        metavar="DIR",
        also="model_name_or_path",
    )
    text: str | None = option(
        None,
        "what the task's source is made of: for emotion a text, for text2text a source, for chat a message, "
        "for span-corruption a text with gaps <extra_id_0> ...; without a task, as --prompt",
        metavar="TEXT",
        positional=True,
    )
    source: str | None = option(None, "the same by name; without a task, a source of text2text")
    context: str | None = option(None, "passage that contains the answer to --question")
    question: str | None = option(None, "question about --context")
    field: list[str] | None = option(
        None, "texts by their names in a template, or in the task's prompt", metavar="NAME=TEXT"
    )
    prompt: str | None = option(
        None, "the model's input: text to continue (GPT-2) or to answer (T5). For chat, a message"
    )
    input: str | None = option(
        None,
        "file of the task's rows, or of one TEXT per line, or JSON lines or CSV with prompt, or (without a "
        "task) context and question, or source; - reads standard input",
        metavar="FILE",
    )
    interactive: bool = option(
        False, "ask for the texts that are not given, again and again, until standard input ends (Ctrl-D)"
    )

    max_new_tokens: int | None = option(
        None, "most tokens to generate (default: 20)", group="Search", also="max_length"
    )
    min_new_tokens: int | None = option(None, "fewest tokens to generate", also="min_length")
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

    sample: bool = option(
        False, "sample each token instead of taking the most likely", group="Sampling", also="do_sample"
    )
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
    compile: bool = option(False, "--fast, and compile the step to C++ (a minute, once); for a CPU")
    batch_size: int = option(8, "prompts of --input per batch", at_least=1)
    device: str | None = option(None, "cpu, cuda or cuda:N (default: cuda if available)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.field or []:
            if not text.partition("=")[1]:
                raise ValueError(f"--field {text}: expected NAME=TEXT")
        if "" in (self.stop or []):
            raise ValueError("--stop is an empty text, expected at least one character")
        given = self.given_fields()
        if not self.interactive and ("context" in given) != ("question" in given):
            raise ValueError("--context and --question go together, one of them is missing")
        inputs = sum(value is not None for value in (self.text, self.source, self.prompt, self.input))
        if self.interactive and (inputs or self.output is not None):
            raise ValueError(
                "--interactive asks for texts and prints answers: it takes --context, --question or --field, "
                "but no other input, and no --output"
            )
        if not self.interactive and inputs + bool(given) != 1:
            choices = "TEXT, --prompt, --context with --question, --field, or --input"
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

    def given_fields(self) -> dict[str, str]:
        """The texts that were given by name."""
        named = {"context": self.context, "question": self.question}
        named |= {name: value for name, _, value in (text.partition("=") for text in self.field or [])}
        return {name: text for name, text in named.items() if text is not None}

    def find_task(self) -> "Task | None":
        """The task: the checkpoint's, changed by the options; None if neither has one."""
        from ftcore.data import Task, load_task

        saved = load_task(self.model)
        if saved or self.field or any(getattr(self, field.name) is not None for field in fields(TaskOptions)):
            return self.make_task(saved)
        if self.context is not None or self.question is not None:
            return Task("qa")
        return Task("text2text") if self.source is not None else None

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
from ftcore.data import Task
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding import ScoredText, generate_texts, stream_text
from ftcore.decoding.arguments import SPECIAL_TOKENS, Arguments, arguments_for
from ftcore.decoding.prompts import build_prompt, interact, read_prompts, warn_of_other_form
from ftcore.decoding.text import checked_prompts
from ftcore.models import Model
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
        task, decoder_only = options.find_task(), not model.config.is_encoder_decoder
        prompts = [] if options.interactive else read_input(options, task, decoder_only=decoder_only)
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
    if options.seed is not None:  # a generator for each prompt
        seeds = range(options.seed, options.seed + max(1, len(prompts)))
        arguments["generator"] = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    # Prompts and arguments are valid: what fails now are logits that are not finite or leave no token.
    with short_warnings(), cli_errors("ftcore.generate", (ArithmeticError, ValueError), FAILED_RUN):
        answer = partial(print_answer, model, tokenizer, options, arguments)
        if options.interactive:
            interact(task, options.given_fields(), answer, decoder_only=decoder_only)
            return 0
        if options.stream:
            answer(prompts[0])
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


def read_input(options: GenerateOptions, task: Task | None, *, decoder_only: bool) -> list[str]:
    """The model's input texts, from the command line or from the file."""
    if options.input is not None:
        return read_prompts(task, options.input, decoder_only=decoder_only)
    texts = (options.text, options.source, options.prompt)
    text = next((text for text in texts if text is not None), None)
    if task is None or (options.prompt is not None and task.name != "chat"):
        if task:
            warn_of_other_form(task, options.prompt or "", decoder_only=decoder_only)
        return [text or ""]
    given = options.given_fields() if text is None else text
    return [build_prompt(task, given, decoder_only=decoder_only)]


def print_answer(
    model: Model, tokenizer: Tokenizer, options: GenerateOptions, arguments: dict[str, Any], text: str
) -> str:
    """Print the answer to one prompt, and return it; of several, the first one."""
    if options.stream:
        answer = stream_text(model, tokenizer, text, partial(print, end="", flush=True), **arguments)
        print()
        return answer
    [answer] = generate_texts(model, tokenizer, [text], return_scores=options.scores, **arguments)
    for line in formatted([text], [answer], options):
        print(line, flush=True)
    first = answer[0] if isinstance(answer, list) else answer
    return first.text if isinstance(first, ScoredText) else first


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
