"""Metrics, and what a model scores, predicts and writes.

`featherweight.evaluate(...)` is a verb and this package at once: calling the package calls `evaluate.evaluate`.
"""

import sys

from featherweight.core.verb import Verb
from featherweight.evaluate.evaluate import evaluate, score
from featherweight.evaluate.predict import generate, predict
from featherweight.evaluate.scores import Scores
from featherweight.evaluate.text import text_scores

__all__ = ["Scores", "evaluate", "generate", "predict", "score", "text_scores"]


sys.modules[__name__].__class__ = Verb
