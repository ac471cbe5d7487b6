"""The options of `python -m ftcore.generate`."""

from dataclasses import dataclass
from typing import Any

# Those that are arguments of `ftcore.decoding.generate` by the same name.
_ARGUMENTS = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "num_return_sequences",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)


@dataclass
class GenerateOptions:
    """Let a checkpoint write: GPT-2 continues a prompt, T5 answers one.

    Give a prompt, or a context and a question, or a file of many. What is not set below, the checkpoint's
    generation_config.json decides.
    """

    model: str  # directory or hub name of a checkpoint

    # [What to answer]
    prompt: str | None = None  # text to continue (GPT-2) or to answer (T5)
    context: str | None = None  # passage that holds the answer to --question
    question: str | None = None  # question about --context
    # file with a prompt a line, or with JSON lines that have the keys "prompt", or "context" and
    input: str | None = None  # "question", or "source"

    # [How long, how well]
    max_new_tokens: int | None = None  # most tokens to write (default: 20)
    min_new_tokens: int | None = None  # fewest tokens to write
    num_beams: int | None = None  # beams of beam search (default: 1, greedy search or sampling)
    length_penalty: float | None = None  # of beam search: above 0 favours long answers (default: 1.0)
    num_return_sequences: int | None = None  # answers to each prompt, from beams or samples (default: 1)
    no_repeat_ngram_size: int | None = None  # no run of that many tokens occurs twice (default: no such rule)
    repetition_penalty: float | None = None  # above 1.0 tokens that occurred become less likely

    # [Sampling]
    sample: bool = False  # draw each token instead of taking the best
    temperature: float | None = None  # below 1.0 closer to the best, above 1.0 more varied (default: 1.0)
    top_k: int | None = None  # draw among that many of the likeliest tokens, 0 for all (default: 50)
    top_p: float | None = None  # draw among the likeliest that together reach this probability (default: 1.0)
    seed: int | None = None  # repeats the same draws (default: other ones every time)

    # [Output]
    stream: bool = False  # show the text while it is written
    json: bool = False  # print a JSON object for each prompt: what the model was given, and its text or texts
    output: str | None = None  # file to write to instead of the screen

    # [Machine]
    batch_size: int = 8  # prompts of --input at a time
    device: str | None = None  # cpu, cuda or cuda:N (default: cuda where there is one)

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
                raise ValueError(f"{_flag(name)} needs --sample: without it nothing is drawn")
        if self.stream:
            for name in ("input", "num_beams", "num_return_sequences", "json", "output"):
                if getattr(self, name) not in (None, False, 1):
                    raise ValueError(
                        f"--stream shows one answer as it grows; it cannot go with {_flag(name)}"
                    )
        if self.batch_size < 1:
            raise ValueError(f"--batch-size is {self.batch_size}, expected at least 1")

    def arguments(self) -> dict[str, Any]:
        """What `ftcore.decoding.generate` is told; the rest is up to the checkpoint."""
        given = {name: getattr(self, name) for name in _ARGUMENTS if getattr(self, name) is not None}
        return given | ({"do_sample": True} if self.sample else {})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
