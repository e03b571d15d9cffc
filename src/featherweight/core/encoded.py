"""What core may know of a number format: that a module keeps some of its tensors as codes, and how to do it again.

weight (out, in) bf16   ->   codes, scales;   reading `weight` decodes, nothing writes it, nothing trains it
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import Problem, listed


@dataclass(frozen=True, eq=False)
class Encoded:
    """One tensor of a module that is kept as codes. `again` is what another tensor becomes when it is kept so too."""

    shape: tuple[int, ...]
    dtype: torch.dtype  # what it decodes to
    scheme: str  # the number format, as written
    kept: tuple[Tensor, ...]
    again: Callable[[Tensor], Tensor]

    @property
    def count(self) -> int:
        """How many parameters it stands for."""
        return torch.Size(self.shape).numel()


# What interop knows of other libraries' modules, which go by what they hold rather than by their class.
others: list[Callable[[Any], Mapping[str, Encoded]]] = []


@singledispatch
def encoded(module: Any) -> Mapping[str, Encoded]:
    """name -> what is known of the tensor, for those kept as codes; number formats register."""
    return next((found for known in others if (found := known(module))), {})


@singledispatch
def like(module: Any, name: str = "weight") -> Tensor:
    """A stand-in of a module's tensor: its shape, dtype and device without its values, so that nothing is decoded."""
    found = encoded(module).get(name)
    if found is None:
        tensor: Tensor = getattr(module, name)
        return tensor
    return torch.empty((), dtype=found.dtype, device=found.kept[0].device).expand(found.shape)


def identity(module: Any, name: str) -> Tensor | None:
    """The very tensor that a module keeps under a name, or keeps its codes in: modules that share it are tied."""
    found = encoded(module).get(name)
    held: Tensor | None = module._parameters.get(name) if found is None else found.kept[0]
    return held


def same(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)


def names(module: Any) -> list[str]:
    """The tensors that a module computes with, as the plain module has them: those kept as codes, and its own."""
    own = [n for n, p in module._parameters.items() if p is not None]
    return list(dict.fromkeys((*encoded(module), *own)))


def untrainable(path: str, module: Any, names: Iterable[str] | None = None) -> list[Problem]:
    """The problem of training a module's own tensors (`names`, or all) where some of them are kept as codes."""
    there = {n: e for n, e in encoded(module).items() if names is None or n in names}
    if not there:
        return []
    scheme = ", ".join(dict.fromkeys(e.scheme for e in there.values()))
    fix = "leave it out of the targets, use a method that adds tensors (LoRA), or fw.dequantize(model) first"
    return [Problem(f"its {listed(list(there))} cannot be trained: kept as codes of {scheme}", path, fix=fix)]
