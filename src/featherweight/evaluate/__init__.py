"""Metrics, and what a model scores, predicts and writes."""

from featherweight.evaluate.evaluate import evaluate, score
from featherweight.evaluate.predict import generate, predict
from featherweight.evaluate.scores import Scores
from featherweight.evaluate.text import text_scores

__all__ = ["Scores", "evaluate", "generate", "predict", "score", "text_scores"]
