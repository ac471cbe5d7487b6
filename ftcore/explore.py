"""See inside a checkpoint while it reads and writes: `python -m ftcore.explore`."""

from dataclasses import dataclass

from ftcore.cli import check_bounds, cli_errors, option, parse

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

    model: str | None = option(
        None,
        "directory or hub name of a checkpoint (default: weights/t5-mini-qa)",
        metavar="DIR",
    )

    prompt: str | None = option(None, "text to continue (GPT-2) or to answer (T5)", group="What it reads")
    context: str | None = option(None, "passage that holds the answer to --question")
    question: str | None = option(None, "question about --context")
    other: str | None = option(
        None,
        "second text, whose activations can be patched into the first; with --question, a second passage",
    )

    max_new_tokens: int = option(20, "most tokens to write", group="How it writes", at_least=1)
    num_beams: int = option(4, "beams of the beam search", at_least=2)
    temperature: float = option(1.0, "of the sampled answer")
    top_k: int = option(
        50,
        "of the sampled answer: draw among that many of the likeliest tokens, 0 for all",
        at_least=0,
    )
    seed: int = option(0, "of the sampled answer")

    out: str | None = option(
        None,
        "file to write the page to (default: explore.html)",
        group="Where the page goes",
        metavar="FILE",
    )
    serve: bool = option(False, "show the page at http://127.0.0.1 and compute while you look, until Ctrl-C")
    port: int | None = option(None, "of --serve, 0 for any that is free (default: 8765)")

    device: str | None = option(
        None,
        "cpu, cuda or cuda:N (default: cuda where there is one)",
        group="Machine",
    )

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
        check_bounds(self)
        if not self.temperature > 0:
            raise ValueError(f"--temperature is {self.temperature}, expected more than 0")


if __name__ == "__main__":
    parse(ExploreOptions, command="ftcore.explore")  # --help and typing errors, before the import of torch

import sys
from collections.abc import Sequence
from pathlib import Path

from ftcore.checkpoints.files import write_atomically
from ftcore.data import prompt
from ftcore.explorer.page import as_html, record_page
from ftcore.explorer.recorder import Search
from ftcore.explorer.server import Server, Session
from ftcore.training.inputs import find_device, load_checkpoint
from ftcore.training.options import CLONE

FILE, PORT = "explore.html", 8765


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(ExploreOptions, argv, command="ftcore.explore")
    with cli_errors("ftcore.explore"):
        out = Path(options.out or FILE)
        if not out.absolute().parent.is_dir():
            raise ValueError(f"--out {out}: its directory does not exist")
        device = find_device(options.device)
        name = options.model or shipped(DEFAULT_MODEL)
        model, tokenizer = load_checkpoint(name)
        model.to(device)
        text, other = texts(options, decoder_only=not model.config.is_encoder_decoder)
        search = Search(
            max_new_tokens=options.max_new_tokens,
            num_beams=options.num_beams,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
        )
        content = record_page(
            model, tokenizer, name, text, other, search, live=options.serve, progress=sys.stderr.isatty()
        )
        page = as_html(content)
        if not options.serve:
            write_atomically(out, lambda path: path.write_text(page, encoding="utf-8"))
            print(f"page  {out} ({len(page) / 1e6:.1f} MB): open it in a browser")
            return 0
        server = listen(page, Session(model, tokenizer), PORT if options.port is None else options.port)
    return serve(server)


def shipped(model: str) -> str:
    """Weights of the clone, from wherever the command is run."""
    return model if Path(model).exists() else str(CLONE / model)


def texts(options: ExploreOptions, *, decoder_only: bool) -> tuple[str, str | None]:
    """What the model reads, and the second text."""
    if options.context is not None and options.question is not None:
        both = [options.context] if options.other is None else [options.context, options.other]
        asked = [
            prompt("qa", decoder_only=decoder_only, context=one, question=options.question) for one in both
        ]
        return asked[0], asked[1] if len(asked) > 1 else None
    if options.prompt is not None:
        return options.prompt, options.other
    return DEFAULT_PROMPT, options.other or DEFAULT_OTHER


def listen(page: str, session: Session, port: int) -> Server:
    try:
        return Server(page, session, port)
    except OSError as error:
        raise ValueError(f"--port {port}: {error.strerror} (0 takes one that is free)") from None


def serve(server: Server) -> int:
    """Until Ctrl-C."""
    with server:
        try:
            print(f"page  {server.address}  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            server.session.finish()
            print("\nended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
