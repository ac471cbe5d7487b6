"""The options of `python -m ftcore.explore`."""

from dataclasses import dataclass

DEFAULT_MODEL = "weights/t5-mini-qa"
DEFAULT_PROMPT = (
    "question: Where does Selorina live? context: Marodan lives in Korbrook. Marodan fears wolves. "
    "Selorina's home is in Wenhaven."
)
# The same with the towns exchanged.
DEFAULT_OTHER = (
    DEFAULT_PROMPT.replace("Korbrook", "#").replace("Wenhaven", "Korbrook").replace("#", "Wenhaven")
)


@dataclass
class ExploreOptions:
    """See inside a checkpoint: a page with its attention, logit lens, next tokens and beams on a text.

    Without --serve the page is one file, with all that was recorded in it, that needs neither Python nor a
    network. Without options: weights/t5-mini-qa on an example.
    """

    model: str | None = None  # directory or hub name of a checkpoint (default: weights/t5-mini-qa)

    # [What it reads]
    prompt: str | None = None  # text to continue (GPT-2) or to answer (T5)
    context: str | None = None  # passage that holds the answer to --question
    question: str | None = None  # question about --context
    # second text, whose activations can be patched into the first; with --question, a second passage
    other: str | None = None

    # [How it writes]
    max_new_tokens: int = 20  # most tokens to write
    num_beams: int = 4  # beams of the beam search
    temperature: float = 1.0  # of the sampled answer
    top_k: int = 50  # of the sampled answer: draw among that many of the likeliest tokens, 0 for all
    seed: int = 0  # of the sampled answer

    # [Where the page goes]
    out: str | None = None  # file to write the page to (default: explore.html)
    serve: bool = False  # show the page at http://127.0.0.1 and compute while you look, until Ctrl-C
    port: int | None = None  # of --serve, 0 for any that is free (default: 8765)

    # [Machine]
    device: str | None = None  # cpu, cuda or cuda:N (default: cuda where there is one)

    def __post_init__(self) -> None:
        if (self.context is None) != (self.question is None):
            raise ValueError("--context and --question go together, one of them is missing")
        if self.prompt is not None and self.context is not None:
            raise ValueError("give --prompt, or --context with --question, not both")
        if self.model is not None and self.prompt is None and self.context is None:
            raise ValueError("--model needs a text: --prompt, or --context with --question")
        if self.serve and self.out is not None:
            raise ValueError("give --out to write a file or --serve to show the page, not both")
        if self.port is not None and not self.serve:
            raise ValueError("--port needs --serve: a file has none")
        if self.port is not None and not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}, expected 0 to 65535")
        for name, least in (("max_new_tokens", 1), ("num_beams", 2), ("top_k", 0)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} is {getattr(self, name)}, expected at least {least}")
        if not self.temperature > 0:
            raise ValueError(f"--temperature is {self.temperature}, expected more than 0")
