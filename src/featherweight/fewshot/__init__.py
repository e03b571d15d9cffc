"""Few-shot benchmarks: every task of a suite trained and scored alike, by one recipe, over several seeds.

`featherweight.fewshot(...)` is a verb and this package at once.
"""

import sys

from featherweight.core.verb import Verb
from featherweight.fewshot.fewglue import FewGLUE
from featherweight.fewshot.fewshot import fewshot
from featherweight.fewshot.figures import Figures
from featherweight.fewshot.raft import RAFT
from featherweight.fewshot.suite import Suite
from featherweight.fewshot.tfew import TFew

__all__ = ["RAFT", "FewGLUE", "Figures", "Suite", "TFew", "fewshot"]

sys.modules[__name__].__class__ = Verb
