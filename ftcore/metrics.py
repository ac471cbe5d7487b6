"""Metrics of generated answers: exact match and F1, accuracy, ROUGE, BLEU, chrF, and a user's own.

Exact match and F1 have two comparisons: that of SQuAD (Rajpurkar et al. 2016, section 6.1; 2018 for questions
without an answer), which ignores case, punctuation and articles, and that of the text as it is.
"""

import math
import re
import string
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from ftcore.output import did_you_mean, one_line

# Called with all predictions and, for each of them, all gold answers.
Metric = Callable[[list[str], list[list[str]]], float | Mapping[str, float]]

DEFAULT_METRICS = ("exact_match", "f1")
METRICS_HELP = (  # of the option --metrics
    "metrics of the generated answers: exact_match f1 accuracy rouge bleu chrf, or your own as "
    "MODULE:FUNCTION, called with all predictions and a list of gold answers for each of them (default: "
    "exact_match f1)"
)

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class MetricError(ValueError):
    """A metric failed, or its value is not a finite number."""


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
    """F1 of the normalized words against the best-matching gold answer, 0 to 1; 0 where no word is shared.

    Against the gold answer "", which means that there is no answer, 1 for a prediction without words, as in
    SQuAD 2.0's script.
    """
    words = normalize(prediction).split()
    return max(
        _f1(words, normalize(reference).split()) if reference else float(not words)
        for reference in references
    )


def _f1(prediction: list[str], reference: list[str]) -> float:
    shared = (Counter(prediction) & Counter(reference)).total()
    return 2 * shared / (len(prediction) + len(reference)) if shared else 0.0


def squad2_references(
    references: Sequence[str], normalize: Callable[[str], str] = normalize_answer
) -> list[str]:
    """The gold answers that SQuAD 2.0's script compares: those with words, or "" if there are none."""
    return [reference for reference in references if normalize(reference)] or [""]


def accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of predictions that equal a gold answer, without white space at the ends; 0 to 1."""
    pairs = zip(predictions, references, strict=True)
    right = sum(prediction.strip() in {text.strip() for text in gold} for prediction, gold in pairs)
    return right / max(1, len(predictions))


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means of the F-measures ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) of the best gold answer, 0 to 1.

    Computed by rouge-score, without stemming. It reads the letters a to z and digits only.
    """
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = _library("rouge_score.rouge_scorer", "rouge-score").RougeScorer(names)
    pairs = zip(predictions, references, strict=True)
    scores = [scorer.score_multi(gold, prediction) for prediction, gold in pairs]
    return {name: sum(score[name].fmeasure for score in scores) / max(1, len(scores)) for name in names}


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU (Papineni et al. 2002) of all predictions together, 0 to 100, by sacrebleu."""
    library, streams = _library("sacrebleu", "sacrebleu"), list(map(list, zip_longest(*references)))
    return library.corpus_bleu(predictions, streams, force=True).score if predictions else 0.0


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """chrF (Popović 2015) of all predictions together, 0 to 100, by sacrebleu."""
    library, streams = _library("sacrebleu", "sacrebleu"), list(map(list, zip_longest(*references)))
    return library.corpus_chrf(predictions, streams).score if predictions else 0.0


def _library(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(f"{package} is not installed: pip install {package}") from None


_METRICS: dict[str, Metric] = {"accuracy": accuracy, "rouge": rouge, "bleu": bleu, "chrf": chrf}
# Of metrics.jsonl; a user's metric has another name.
_TAKEN = {"step", "epoch", "train_loss", "learning_rate", "grad_norm", "skipped_steps", "tokens_per_second"}
_TAKEN |= {"examples_per_second", "valid_loss", "token_accuracy", "perplexity", "exact_match", "f1"}
_TAKEN |= {"accuracy", "rouge1", "rouge2", "rougeL", "bleu", "chrf"}


def metric_names(given: Sequence[str] | None) -> list[str]:
    """The names in --metrics, separated by spaces or commas, without duplicates; by default exact_match, f1.

    Raises:
        ValueError: there is no such metric.
    """
    names = [name for text in given or DEFAULT_METRICS for name in text.split(",") if name]
    known = [*DEFAULT_METRICS, *_METRICS]
    for name in names:
        if name not in known and not re.fullmatch(r"[\w.]+:\w+", name):
            hint = did_you_mean(name, known)
            there = f"{hint} There" if hint else "; there"
            raise ValueError(
                f"`metrics` {name}: no such metric{there} are {', '.join(known)}, "
                "and MODULE:FUNCTION for your own"
            )
    return list(dict.fromkeys(names))


def compute(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The values of a metric of `metric_names` by their keys in metrics.jsonl; not of exact_match and f1.

    Raises:
        MetricError: it fails, or a value is not a finite number.
        ValueError: its package is not installed.
    """
    if name in _METRICS:
        return _values(name, _METRICS[name]([*predictions], [[*gold] for gold in references]))
    function = _users_function(name)
    try:
        result = function([*predictions], [[*gold] for gold in references])
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)[1:2]
        where = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in frames)
        raise MetricError(f"`metrics` {name}: {type(error).__name__}: {one_line(error)}{where}") from None
    values = _values(name, result)
    for key in values:
        if key in _TAKEN or not re.fullmatch(r"[^\s/]+", key) or not key.isprintable():
            raise MetricError(f"`metrics` {name}: {shown(key)} is no name for a metric of your own")
    return values


def _users_function(name: str) -> Metric:
    """The function of MODULE:FUNCTION; the module may be in the working directory."""
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(import_module(module), function)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise MetricError(f"`metrics` {name}: cannot be imported: {reason}") from None


def _values(name: str, result: Any) -> dict[str, float]:
    values = result if isinstance(result, Mapping) else {name.rpartition(":")[2]: result}
    found = {}
    for key, value in values.items():
        try:
            found[str(key)] = float(value)
        except Exception:  # of many types: None, a tensor with several elements
            found[str(key)] = math.nan
        if not math.isfinite(found[str(key)]):
            raise MetricError(f"`metrics` {name}: {key} is {shown(value)}, expected a finite number")
    return found
