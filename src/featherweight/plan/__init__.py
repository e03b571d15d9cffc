"""`plan`: parameters, memory, time and disk of a run, known before it starts."""

import sys

from featherweight.core.verb import Verb
from featherweight.plan.plan import Plan, plan

__all__ = ["Plan", "plan"]

sys.modules[__name__].__class__ = Verb
