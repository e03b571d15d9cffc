"""Fused frozen modules: `fuse(model)` changes a module's class in place to one whose forward keeps less and runs
faster.

    norm       RMSNorm with a frozen weight        gated     silu(gate(x)) · up(x) of a gated MLP
    dropout    nn.Dropout on a CPU                 attention dropout of probabilities, and few keys in 16 bits, on a CPU

What a module computes stays: a module is fused only where a probe shows its own forward and ours to agree to the bit
(norm, gated), or where only the source of the noise differs (dropout) or the rounding of 16-bit sums (attention).
Keys, `isinstance` and names stay too.
"""

from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, ClassVar, NamedTuple

from torch import nn

from featherweight.core.derived import derive
from featherweight.core.host import base_modules, frozen_class, reclass
from featherweight.kernels import attention, dropout, gated, norm


class Fusion(NamedTuple):
    """Which modules it fits, and the forward it gives to a class."""

    fits: Callable[[nn.Module, type[nn.Module]], bool]
    forward_of: Callable[[type[nn.Module]], Callable[..., Any]]


FUSIONS = {
    "norm": Fusion(norm.fits, norm.forward_of),
    "gated": Fusion(gated.fits, gated.forward_of),
    "dropout": Fusion(dropout.fits, dropout.forward_of),
    "attention": Fusion(attention.fits, attention.forward_of),
}


class Fused:
    """Mixin of every fused class; `unfused` is what the module was, and what it becomes again."""

    unfused: ClassVar[type[nn.Module]]


def fuse(model: nn.Module) -> dict[str, str]:
    """Fuse every module that fits, in place; path -> fusion of what was fused now. A second call finds nothing."""
    done = {}
    for path, module in base_modules(model):
        cls = frozen_class(module)
        name = None if issubclass(cls, Fused) else next((n for n, f in FUSIONS.items() if f.fits(module, cls)), None)
        if name:
            reclass(module, fused_class(cls, fusion=name))
            done[path] = name
    return done


def unfuse(model: nn.Module) -> None:
    """Give every fused module its own class back."""
    for _, module in base_modules(model):
        cls = frozen_class(module)
        if issubclass(cls, Fused):
            reclass(module, cls.unfused)


def unfused(cls: Any) -> Any:
    """A module class as it was before it was fused."""
    return cls.unfused if issubclass(cls, Fused) else cls


@cache
def fused_class(cls: Any, fusion: str) -> Any:
    """The fused class of a module class: one for each, made once."""
    forward = wraps(cls.forward)(FUSIONS[fusion].forward_of(cls))
    return derive(cls, partial(fused_class, fusion=fusion), Fused, forward=forward, unfused=cls)
