"""Distillation: a student made of its teacher, losses between the two, and recipes that mix them.

`featherweight.distill(...)` is a verb and this package at once.
"""

import sys

from featherweight.core.verb import Verb
from featherweight.distill.cache import TeacherCache
from featherweight.distill.recipes import GKD, KD, DistilBERT, DistilGPT2, MiniLM, Recipe, SequenceKD, TinyBERT
from featherweight.distill.student import student
from featherweight.distill.task import Distilled
from featherweight.distill.verb import distill

__all__ = [
    "GKD", "KD", "DistilBERT", "DistilGPT2", "Distilled", "MiniLM", "Recipe", "SequenceKD", "TeacherCache", "TinyBERT",
    "distill", "student",
]  # fmt: skip

sys.modules[__name__].__class__ = Verb
