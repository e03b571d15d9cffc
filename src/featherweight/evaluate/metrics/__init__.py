"""Metrics as pure functions. Bounded ones run from 0 to 1; NIST and CIDEr-D have their own scale."""

from featherweight.evaluate.metrics.bleu import bleu
from featherweight.evaluate.metrics.cider import cider
from featherweight.evaluate.metrics.meteor import meteor
from featherweight.evaluate.metrics.nist import nist
from featherweight.evaluate.metrics.rouge import rouge, rouge_l
from featherweight.tasks.metrics import (
    accuracy,
    exact_match,
    f1,
    macro_f1,
    matthews,
    mean_squared_error,
    multilabel_f1,
    pearson,
    perplexity,
    spearman,
)

__all__ = [
    "accuracy", "bleu", "cider", "exact_match", "f1", "macro_f1", "matthews", "mean_squared_error", "meteor",
    "multilabel_f1", "nist", "pearson", "perplexity", "rouge", "rouge_l", "spearman",
]  # fmt: skip
