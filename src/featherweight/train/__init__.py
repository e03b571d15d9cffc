"""Training: the loop, its optimizers and schedules, checkpoints that survive, the step-1 audit, logs.

`featherweight.train(...)` is a verb and this package at once: calling the package calls `run.train`.
"""

import sys
from importlib import import_module
from typing import Any

from featherweight.core.verb import Verb
from featherweight.train.settings import Settings, settings

_HOME = {
    "train": "run",
    "Run": "run",
    "Stopped": "stop",
    "CheckpointError": "store",
    "NoGradient": "audit",
    "NotFinite": "finite",
}

__all__ = [*_HOME, "Settings", "settings"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'featherweight.train' has no attribute {name!r}")
    return getattr(import_module(f"featherweight.train.{_HOME[name]}"), name)


sys.modules[__name__].__class__ = Verb
