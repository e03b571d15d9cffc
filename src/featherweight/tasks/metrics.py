"""Metrics of predicted labels and numbers: pure functions of two equally long sequences. F1s of a class without
predictions and without references are 0; a correlation with a constant is 0, as in scikit-learn's Matthews."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Hashable, Sequence
from typing import Literal


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """The share of predictions that equal their reference, 0 to 1."""
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of texts that equal one of their references after SQuAD's normalization (Rajpurkar et al. 2016)."""
    pairs = zip(predictions, references, strict=True)
    return sum(normalized(p) in map(normalized, rs) for p, rs in pairs) / len(references)


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the; white space collapsed."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def f1(predictions: Sequence[Hashable], references: Sequence[Hashable], positive: Hashable) -> float:
    """2 tp / (2 tp + fp + fn) of the class `positive`."""
    pairs = list(zip(predictions, references, strict=True))
    hits = sum(p == r == positive for p, r in pairs)
    named = sum(p == positive for p, _ in pairs) + sum(r == positive for _, r in pairs)
    return 2 * hits / named if named else 0.0


def macro_f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The unweighted mean of F1 over the classes met in either sequence."""
    classes = sorted({*predictions, *references})
    return sum(f1(predictions, references, c) for c in classes) / len(classes)


def matthews(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Matthews' correlation coefficient (Gorodkin's form for more than two classes), -1 to 1."""
    if constant(predictions) or constant(references):
        return 0.0
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def multilabel_f1(
    predictions: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    labels: Sequence[str],
    average: Literal["macro", "micro"],
) -> float:
    """F1 over sets of labels: the mean over labels (macro), or of all decisions pooled (micro)."""
    pairs = [(set(p), set(r)) for p, r in zip(predictions, references, strict=True)]
    hits = [sum(label in p and label in r for p, r in pairs) for label in labels]
    named = [sum((label in p) + (label in r) for p, r in pairs) for label in labels]
    if average == "micro":
        hits, named = [sum(hits)], [sum(named)]
    return sum(2 * h / n if n else 0.0 for h, n in zip(hits, named, strict=True)) / len(hits)


def pearson(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Pearson's correlation, -1 to 1."""
    if constant(predictions) or constant(references):
        return 0.0
    from scipy.stats import pearsonr

    return float(pearsonr(predictions, references).statistic)


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank, -1 to 1."""
    if constant(predictions) or constant(references):
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(predictions, references).statistic)


def mean_squared_error(predictions: Sequence[float], references: Sequence[float]) -> float:
    """The mean of squared differences."""
    return sum((p - r) ** 2 for p, r in zip(predictions, references, strict=True)) / len(references)


def perplexity(loss: float) -> float:
    """exp of a mean cross-entropy in nats per token; inf where that overflows."""
    return math.exp(loss) if loss < 709 else math.inf


def constant(values: Sequence[Hashable]) -> bool:
    return len(set(values)) < 2
