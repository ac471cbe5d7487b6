"""The page inside of a notebook."""

from dataclasses import dataclass, field
from html import escape
from typing import Any

from ftcore.data.tokenizer import Tokenizer
from ftcore.explorer.page import as_html, record_page
from ftcore.explorer.recorder import Search
from ftcore.models import Model


@dataclass(frozen=True)
class Page:
    """A page that displays itself as the last line of a notebook's cell; `html` is the whole file."""

    html: str = field(repr=False)
    height: int  # in pixels

    def _repr_html_(self) -> str:
        # A frame of its own: neither the page nor the notebook can change the other's style or state.
        style = f"width: 100%; height: {self.height}px; border: 1px solid #8888"
        return (
            f'<iframe title="Inside the model" sandbox="allow-scripts" style="{style}" '
            f'srcdoc="{escape(self.html)}"></iframe>'
        )


def show(
    model: Model,
    tokenizer: Tokenizer,
    text: str,
    other: str | None = None,
    *,
    height: int = 900,
    **search: Any,
) -> Page:
    """Record a model on a text, as the page of `python -m ftcore.explore` shows it.

    Args:
        text: to continue (GPT-2) or to answer (T5).
        other: a second text, to patch activations from.
        height: of the page in the notebook, in pixels.
        search: settings of the generated answers, see `Search`: max_new_tokens, num_beams, ...

    Raises:
        ValueError: a text is empty or too long, or a setting is out of its bounds.
        TypeError: an unknown setting.
    """
    name = "T5" if model.config.is_encoder_decoder else "GPT-2"
    content = record_page(model, tokenizer, name, text, other, Search(**search), live=False, progress=True)
    return Page(as_html(content), height)
