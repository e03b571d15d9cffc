"""AdapterDrop: bottlenecks that rest in the first blocks.

`skip=k` puts none into the first k blocks. `drop=k` trains all of them, but in each forward of training
those of the first 0 … k blocks rest, drawn anew; afterwards `drop(model, j)` lets those of any first j ≤ k rest at
inference, for speed. Blocks count through encoder and decoder, the encoder's first.
Source: Rücklé et al. 2020, "AdapterDrop", arXiv:2010.11918.
"""

import torch
from torch import nn

from featherweight.core.errors import InputError, Problem
from featherweight.core.state import adapters


class Drop:
    """AdapterDrop's state, one for all adapters of a name; the first of them to run draws for the rest."""

    def __init__(self, most: int = 0):
        self.most, self.drawn, self.fixed = most, 0, 0

    def draw(self) -> None:
        self.drawn = int(torch.randint(self.most + 1, ())) if self.most else 0

    def rests(self, block: int, training: bool) -> bool:
        return block < max(self.fixed, self.drawn if training else 0)


def drop(model: nn.Module, blocks: int, name: str = "default") -> nn.Module:
    """Let the adapters in the first `blocks` blocks rest, in training and in use; 0 wakes them all."""
    found = [a for a in adapters(model, name).values() if isinstance(getattr(a, "drop", None), Drop)]
    if not found:
        raise InputError(Problem("has no bottlenecks to drop", got=repr(name)))
    for adapter in found:
        adapter.drop.fixed = blocks  # type: ignore[union-attr]
    return model
