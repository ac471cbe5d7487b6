"""Exact match and F1 as SQuAD 1.1 defines them (Rajpurkar et al. 2016, section 6.1)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(answer: str) -> str:
    """Lower-case, and remove punctuation, articles and extra white space."""
    bare = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalized prediction equals one of the normalized gold answers, else 0.0."""
    return float(any(normalize_answer(prediction) == normalize_answer(reference) for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Word F1 against the best-matching gold answer, 0 to 1."""
    return max(
        _f1(normalize_answer(prediction).split(), normalize_answer(reference).split())
        for reference in references
    )


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    shared = (Counter(prediction) & Counter(reference)).total()
    return 2 * shared / (len(prediction) + len(reference))
