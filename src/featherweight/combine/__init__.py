"""Arithmetic of adapters: several into one, and a full fine-tune into one.

`featherweight.combine(...)` is a verb and this package at once: calling the package calls `verb.combine`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

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


class Verb(ModuleType):
    """A module that is called as the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("featherweight.combine.verb").combine(*args, **kwargs)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'featherweight.combine' has no attribute {name!r}")
    return getattr(import_module(f"featherweight.combine.{_HOME[name]}"), name)


sys.modules[__name__].__class__ = Verb
