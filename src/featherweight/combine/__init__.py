"""Arithmetic of adapters: several into one, and a full fine-tune into one.

`featherweight.combine(...)` is a verb and this package at once: calling the package calls `verb.combine`.
"""

import sys
from importlib import import_module
from typing import Any

from featherweight.core.verb import Verb

_HOME = {
    "combine": "verb",
    "extract": "tuned",
    "Extracted": "report",
    "Combination": "noun",
    "Linear": "linear",
    "Geometric": "linear",
    "Cat": "linear",
    "SVD": "linear",
    "TIES": "ties",
    "DARE": "dare",
    "MagnitudePrune": "prune",
}

__all__ = [*_HOME]  # names of strings, imported when asked for


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'featherweight.combine' has no attribute {name!r}")
    return getattr(import_module(f"featherweight.combine.{_HOME[name]}"), name)


sys.modules[__name__].__class__ = Verb
