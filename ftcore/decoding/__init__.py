"""Generation: the rules that shape the scores, the searches that choose by them, and text in, text out.

Read `search.py` first: greedy, sampling and beam search on one page. `processors.py` holds the rules,
`stepper.py` the model with its cache as the searches see it, `arguments.py` what every argument means,
`prepare.py` how a model is made ready for many calls: on a CPU by `packed.py` and `compiled.py`, on a GPU by
`graph.py`.
"""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
    from ftcore.decoding.search import generate
    from ftcore.decoding.text import TextStream, generate_from_ids, generate_texts, stream_text
    from ftcore.fast.decoding import prepare_for_decoding

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
        "prepare_for_decoding": "ftcore.fast.decoding",
        "generate_from_ids": "ftcore.decoding.text",
        "generate_texts": "ftcore.decoding.text",
        "stream_text": "ftcore.decoding.text",
        "TextStream": "ftcore.decoding.text",
    },
)
