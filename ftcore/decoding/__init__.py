"""Text generation. Read search.py first, then sampling.py (greedy search and sampling), beam_search.py,
processors.py (logits processors), state.py (the model and its cache), arguments.py (all arguments) and
text.py (text in and out).
"""

from typing import Any

from ftcore.decoding.sampling import ScoredIds
from ftcore.decoding.search import generate
from ftcore.decoding.text import ScoredText, TextStream, generate_from_ids, generate_texts, stream_text

__all__ = [
    "ScoredIds",
    "ScoredText",
    "TextStream",
    "generate",
    "generate_from_ids",
    "generate_texts",
    "stream_text",
]


def __getattr__(name: str) -> Any:
    if name == "prepare_for_decoding":  # an alias, imported on request: ftcore.fast is optional
        from ftcore.fast import prepare_for_decoding

        return prepare_for_decoding
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
