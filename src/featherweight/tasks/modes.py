"""Eval mode for a while: every module's own training flag comes back, also where they differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards each module is in the mode it was in."""
    trained = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def inner(model: nn.Module) -> nn.Module:
    """The model inside a DistributedDataParallel or compiled wrapper."""
    while not hasattr(type(model), "get_output_embeddings"):
        wrapped = model._modules.get("module") or model._modules.get("_orig_mod")
        if wrapped is None:
            return model
        model = wrapped
    return model
