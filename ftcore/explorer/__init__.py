"""The HTML page of `python -m ftcore.explore`: what a checkpoint computes on a text.

Its modules:

    recorder.py       runs the model under `ftcore.study.record`
    interventions.py  runs it with heads ablated or activations patched, under `ftcore.study.patch`
    serialize.py      tensors and tokens as JSON
    page.py           joins the recorded data and the files in page/ into one HTML file
    server.py         serves that file and runs the model on request
    notebook.py       shows it in a notebook
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.explorer.notebook import show

__all__ = ["MAX_BEAMS", "MAX_NEW_TOKENS", "MAX_SEED", "show"]

# Limits of one page, so that a request cannot occupy the machine. They also bound the options of the command.
MAX_BEAMS = 64
MAX_NEW_TOKENS = 1000
MAX_SEED = 2**63 - 1


def __getattr__(name: str) -> Any:
    if name == "show":  # imported when first used: the command reads the limits before torch is imported
        from ftcore.explorer.notebook import show

        return show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
