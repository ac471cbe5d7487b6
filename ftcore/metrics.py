"""Exact match and word F1 of a generated answer.

Two comparisons: that of SQuAD 1.1 (Rajpurkar et al. 2016, section 6.1), which ignores case, punctuation and
articles, and that of the text as it is.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(answer: str) -> str:
    """Lower-case, and remove ASCII punctuation, articles and extra white space, as SQuAD's script does."""
    bare = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def exact_match(
    prediction: str, references: Sequence[str], normalize: Callable[[str], str] = normalize_answer
) -> float:
    """1.0 if the normalized prediction equals one of the normalized gold answers, else 0.0.

    `normalize` is SQuAD's by default; `str.strip` compares the texts as they are.
    """
    return float(any(normalize(prediction) == normalize(reference) for reference in references))


def f1(
    prediction: str, references: Sequence[str], normalize: Callable[[str], str] = normalize_answer
) -> float:
    """F1 of the normalized words against the best-matching gold answer, 0 to 1; 0 where no word is shared."""
    words = normalize(prediction).split()
    return max(_f1(words, normalize(reference).split()) for reference in references)


def _f1(prediction: list[str], reference: list[str]) -> float:
    shared = (Counter(prediction) & Counter(reference)).total()
    return 2 * shared / (len(prediction) + len(reference)) if shared else 0.0
