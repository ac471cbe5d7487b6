"""See inside a checkpoint while it reads and writes: `python -m ftcore.explore`."""

from ftcore.command import clear_errors, parse
from ftcore.explorer.options import DEFAULT_MODEL, DEFAULT_OTHER, DEFAULT_PROMPT, ExploreOptions

if __name__ == "__main__":
    parse(ExploreOptions, command="ftcore.explore")  # --help and typing errors, before the import of torch

import sys
from collections.abc import Sequence
from pathlib import Path

from ftcore.data import prompt
from ftcore.explorer.page import as_html, record_page
from ftcore.explorer.recorder import Search
from ftcore.explorer.server import Server, Session
from ftcore.models.atomic import write_atomically
from ftcore.training.inputs import find_device, load_checkpoint
from ftcore.training.options import CLONE

FILE, PORT = "explore.html", 8765


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(ExploreOptions, argv, command="ftcore.explore")
    with clear_errors("ftcore.explore"):
        out = Path(options.out or FILE)
        if not out.absolute().parent.is_dir():
            raise ValueError(f"--out {out}: its directory does not exist")
        device = find_device(options.device)
        name = options.model or shipped(DEFAULT_MODEL)
        model, tokenizer = load_checkpoint(name)
        model.to(device)
        text, other = texts(options, causal=not model.config.is_encoder_decoder)
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


def texts(options: ExploreOptions, *, causal: bool) -> tuple[str, str | None]:
    """What the model reads, and the second text."""
    if options.context is not None and options.question is not None:
        both = [options.context] if options.other is None else [options.context, options.other]
        asked = [prompt("qa", causal=causal, context=one, question=options.question) for one in both]
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
