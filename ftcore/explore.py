"""Write or serve an HTML page of a model's activations on a text: `python -m ftcore.explore`."""

from dataclasses import dataclass

from ftcore.cli import check_options, option, parse
from ftcore.explorer import MAX_BEAMS, MAX_NEW_TOKENS, MAX_SEED
from ftcore.output import FAILED_RUN, cli_errors, guard_output

DEFAULT_MODEL = "weights/t5-mini-qa"
DEFAULT_PROMPT = (
    "question: Where does Selorina live? context: Marodan lives in Korbrook. Marodan fears wolves. "
    "Selorina's home is in Wenhaven."
)
# The same with the two towns swapped.
DEFAULT_OTHER = (
    DEFAULT_PROMPT.replace("Korbrook", "#").replace("Wenhaven", "Korbrook").replace("#", "Wenhaven")
)


@dataclass
class ExploreOptions:
    """See inside a checkpoint: a page with its attention, logit lens, next tokens and beams on a text.

    Without --serve the page is one file with all recorded data; it needs neither Python nor a network.
    Without options: weights/t5-mini-qa on an example.
    """

    model: str | None = option(
        None, "directory or hub name of a checkpoint (default: weights/t5-mini-qa)", metavar="DIR"
    )

    prompt: str | None = option(None, "text to continue (GPT-2) or to answer (T5)", group="Input")
    context: str | None = option(None, "passage that holds the answer to --question")
    question: str | None = option(None, "question about --context")
    other: str | None = option(
        None, "second text, to patch activations from; with --question, a second passage"
    )

    max_new_tokens: int = option(
        20, "most tokens to generate", group="Generation", at_least=1, below=MAX_NEW_TOKENS + 1
    )
    num_beams: int = option(4, "beams of beam search", at_least=2, below=MAX_BEAMS + 1)
    temperature: float = option(1.0, "temperature of the sampled answer", at_least=1e-30)
    top_k: int = option(50, "sample among this many most likely tokens, 0 for all", at_least=0)
    seed: int = option(0, "random seed of the sampled answer", at_least=0, below=MAX_SEED)

    out: str | None = option(
        None, "file to write the page to (default: explore.html)", group="Output", metavar="FILE"
    )
    serve: bool = option(False, "serve the page at http://127.0.0.1 and compute on request, until Ctrl-C")
    port: int | None = option(None, "port of --serve, 0 for any free one (default: 8765)")

    device: str | None = option(None, "cpu, cuda or cuda:N (default: cuda if available)", group="Machine")

    def __post_init__(self) -> None:
        check_options(self)
        if (self.context is None) != (self.question is None):
            raise ValueError("--context and --question go together, one of them is missing")
        if self.prompt is not None and self.context is not None:
            raise ValueError("give --prompt, or --context with --question, not both")
        if self.model is not None and self.prompt is None and self.context is None:
            raise ValueError("--model needs a text: --prompt, or --context with --question")
        if self.serve and self.out is not None:
            raise ValueError("give --out to write a file or --serve to show the page, not both")
        if self.port is not None and not self.serve:
            raise ValueError("--port needs --serve")
        if self.port is not None and not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}, expected 0 to 65535")


if __name__ == "__main__":
    guard_output("ftcore.explore")
    parse(ExploreOptions, command="ftcore.explore")  # --help and invalid options, before torch is imported

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ftcore.checkpoints.files import write_text
from ftcore.data import prompt
from ftcore.explorer.page import as_html, record_page
from ftcore.explorer.recorder import Search
from ftcore.explorer.server import Server, Session
from ftcore.training.inputs import find_device, load_checkpoint
from ftcore.training.run_files import CLONE

DEFAULT_OUT, DEFAULT_PORT = "explore.html", 8765


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(ExploreOptions, argv, command="ftcore.explore")
    not_finite = cli_errors("ftcore.explore", (FloatingPointError,), FAILED_RUN)
    with not_finite, cli_errors("ftcore.explore"):
        out = Path(options.out or DEFAULT_OUT)
        if not out.absolute().parent.is_dir():
            raise ValueError(f"--out {out}: its directory does not exist")
        device = find_device(options.device)
        name = options.model or find_default_model()
        model, tokenizer = load_checkpoint(name)
        model.to(device)
        text, other = input_texts(options, decoder_only=not model.config.is_encoder_decoder)
        search = Search(
            options.max_new_tokens, options.num_beams, options.temperature, options.top_k, options.seed
        )
        content = record_page(
            model, tokenizer, name, text, other, search, live=options.serve, progress=sys.stderr.isatty()
        )
        page = as_html(content)
        if not options.serve:
            write_text(out, page)
            print(f"page  {out} ({len(page) / 1e6:.1f} MB): open it in a browser")
            return 0
        port = DEFAULT_PORT if options.port is None else options.port
        try:
            server = Server(page, Session(model, tokenizer), port)
        except OSError as error:
            raise ValueError(f"--port {port}: {error.strerror} (0 takes any free port)") from None
    with server:
        try:
            print(f"page  {server.address}  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            server.session.close()
            print("\nended")
    return 0


def find_default_model() -> str:
    """Find the directory of the default model: in the working directory, or else in the clone.

    Raises:
        ValueError: it is in neither, as with a package installed without a clone.
    """
    for directory in (Path(DEFAULT_MODEL), CLONE / DEFAULT_MODEL):
        if directory.is_dir():
            return str(directory)
    raise ValueError(
        f"{DEFAULT_MODEL}, the default of --model, is not here: it comes with a clone of the project. "
        "Pass --model and --prompt, or run this in a clone"
    )


def input_texts(options: ExploreOptions, *, decoder_only: bool) -> tuple[str, str | None]:
    """The text and the second text, as the model reads them."""
    if options.context is not None and options.question is not None:
        ask = partial(prompt, "qa", decoder_only=decoder_only, question=options.question)
        return ask(context=options.context), None if options.other is None else ask(context=options.other)
    if options.prompt is not None:
        return options.prompt, options.other
    return DEFAULT_PROMPT, options.other or DEFAULT_OTHER


if __name__ == "__main__":
    sys.exit(main())
