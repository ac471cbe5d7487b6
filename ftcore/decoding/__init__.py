"""Text generation. Read search.py first (greedy search, sampling, beam search), then processors.py (logits
processors), state.py (the model and its cache), arguments.py (all arguments) and text.py (text in and out).
"""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
    from ftcore.decoding.search import generate
    from ftcore.decoding.text import TextStream, generate_from_ids, generate_texts, stream_text
    from ftcore.fast import prepare_for_decoding

__all__ = [
    "TextStream",
    "generate",
    "generate_from_ids",
    "generate_texts",
    "prepare_for_decoding",
    "stream_text",
]

__getattr__ = lazily(
    __name__,
    {
        "generate": "ftcore.decoding.search",
        "prepare_for_decoding": "ftcore.fast.decoding",  # an alias
        "generate_from_ids": "ftcore.decoding.text",
        "generate_texts": "ftcore.decoding.text",
        "stream_text": "ftcore.decoding.text",
        "TextStream": "ftcore.decoding.text",
    },
)
