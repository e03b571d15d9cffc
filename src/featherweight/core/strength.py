"""Strength: an adapter turned down or up, for every method alike.

    y = base(x) + c (adapter(x) − base(x))        W' = W + c (merge(W) − W)

c = 0 is the base and c = 1 the adapter, bit for bit. Where the adapter is linear in its weights (LoRA, (IA)³, biases,
norms) the two laws are one.
"""

from typing import Any

import torch
from torch import Tensor

from featherweight.core.adapter import Adapter
from featherweight.core.base import Once


class Softened:
    """An adapter at a strength, in a stack."""

    joint = None

    def __init__(self, adapter: Adapter, strength: float):
        self.adapter, self.strength = adapter, strength

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        if self.adapter.rewrites:  # turned down in the weights, in which no host need be linear
            return Adapter.forward(self, base, *args, **kwargs)  # type: ignore[arg-type]
        plain = base(*args, **kwargs)
        return between(plain, self.adapter(Once(base, args, plain), *args, **kwargs), self.strength)

    @property
    def folds(self) -> bool:
        return self.adapter.folds

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {name: between(W[name], w, self.strength) for name, w in self.adapter.merge(W).items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Softened) and (self.adapter, self.strength) == (other.adapter, other.strength)

    def __hash__(self) -> int:
        return hash((self.adapter, self.strength))


def between(plain: Any, full: Any, strength: float) -> Any:
    """plain + c (full − plain) of a tensor, or of the first entry of a tuple (a block's hidden state)."""
    if isinstance(plain, Tensor):
        return torch.lerp(plain, full.to(plain.dtype), strength)
    return type(plain)((between(plain[0], full[0], strength), *plain[1:]))
