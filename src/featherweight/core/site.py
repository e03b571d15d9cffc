"""A site: one place of a model where a method puts an adapter: a module, or rows of a fused one."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from torch import Tensor, nn

from featherweight.core.encoded import encoded
from featherweight.core.host import frozen_class
from featherweight.core.part import Part, transposed


@dataclass(frozen=True, eq=False)
class Site:
    """`rows` is None for the whole module. `role` is the anatomy's name of the place, "" where it has none."""

    path: str
    module: nn.Module
    role: str = ""
    rows: Tensor | None = None

    @cached_property
    def kind(self) -> str:
        return kind_of(self.module)

    @property
    def whole(self) -> bool:
        """Whether an adapter may sit on the module itself: no slice, and not a Conv1D."""
        return self.rows is None and not transposed(self.module)

    @cached_property
    def host(self) -> Any:
        """What a method builds on: the module, or a facade of it with weight (out, in) in floating point."""
        return self.module if self.whole and not coded(self.module) else Part(self.module, self.rows)

    def __str__(self) -> str:
        return self.path if self.rows is None else f"{self.path}[{self.role}]"


def coded(module: nn.Module) -> bool:
    """Whether the module keeps codes under the very name of a tensor, so that reading it there gives no values."""
    return any(name in module._parameters for name in encoded(module))


def kind_of(module: nn.Module) -> str:
    """linear, conv, embedding, norm or other.

    Conv1D is a linear; anything that only holds tensors of its own is other.
    """
    if isinstance(module, nn.Linear) or transposed(module):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "norm" if is_norm(module) else "other"


def is_norm(module: nn.Module) -> bool:
    """LayerNorm and RMSNorm of any make: a leaf named for it, whose weight (and bias) are vectors."""
    if not named_norm(frozen_class(module)) or any(n != "adapters" for n in module._modules):
        return False
    own = [p for p in module._parameters.values() if p is not None]
    return "weight" in module._parameters and all(p.dim() == 1 for p in own) and bool(own)


@cache
def named_norm(cls: Any) -> bool:
    return any("norm" in c.__name__.lower() for c in cls.__mro__)
