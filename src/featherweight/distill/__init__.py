"""Distillation: a student made of its teacher, losses between the two, and recipes that mix them.

`featherweight.distill(...)` is a verb and this package at once.
"""

import sys

from featherweight.core.verb import Verb
from featherweight.distill.recipes import KD, DistilBERT, MiniLM, Recipe, TinyBERT
from featherweight.distill.student import student
from featherweight.distill.task import Distilled
from featherweight.distill.verb import distill

__all__ = ["KD", "DistilBERT", "Distilled", "MiniLM", "Recipe", "TinyBERT", "distill", "student"]

sys.modules[__name__].__class__ = Verb
