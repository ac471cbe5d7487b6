"""Exact match and F1 as SQuAD 1.1 defines them (Rajpurkar et al. 2016, section 6.1)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    bare = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the prediction is one of the gold answers after normalisation, else 0.0."""
    return float(any(normalise(prediction) == normalise(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, 0 to 1, against the gold answer that fits best."""
    return max(_f1(normalise(prediction).split(), normalise(reference).split()) for reference in references)


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    shared = (Counter(prediction) & Counter(reference)).total()
    return 2 * shared / (len(prediction) + len(reference))
