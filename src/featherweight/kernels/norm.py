"""RMSNorm with a frozen weight: y = w · x / √(mean x² + ε), recomputed from x in backward.

    r = (mean x² + ε)^-½      x̂ = r x      g = w · dy      dx = r (g - x̂ mean(g x̂))

x (..., d)   w (d)   r (..., 1) float32. Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

Autograd keeps x and its square's chain in float32; here x is kept by reference and r is all that is new.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.kernels.first import first_derivative
from featherweight.quant.ops import direct, unwatched

SMALL = 1 << 15  # numbers up to which one native call beats ten calls of torch, which share more between threads


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis in float32, rounded to x's dtype before the weight is applied (Llama's order).

    `weight` must be frozen. First derivatives only: a second backward raises RuntimeError.
    """
    if weight.requires_grad:
        raise ValueError("rms_norm: the weight must be frozen, got one that requires grad")
    return FrozenRMSNorm.apply(x, weight, eps)


class FrozenRMSNorm(torch.autograd.Function):
    """The module's equations; arguments (x, w, ε)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        r = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, r)
        return weight * (wide * r).to(x.dtype)

    @staticmethod
    @first_derivative
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, weight, r = ctx.saved_tensors
        g = (dy * weight).float()
        unit = x.float() * r
        mean = (g * unit).mean(-1, keepdim=True)
        return g.addcmul_(unit, mean, value=-1).mul_(r).to(x.dtype), None, None


def fits(module: nn.Module, cls: type[nn.Module]) -> bool:
    """A norm by name whose own forward gives the same bits as `rms_norm` on a probe; offset variants (Gemma's 1 + w)
    differ."""
    if not named(cls) or list(module._parameters) != ["weight"]:
        return False
    weight, eps = module.weight, epsilon(module)
    if eps is None or not isinstance(weight, Tensor) or weight.is_meta or weight.dim() != 1:
        return False
    probe = torch.linspace(-0.01, 0.02, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(2, -1)
    with torch.no_grad():
        return torch.equal(cls.forward(module, probe), FrozenRMSNorm.apply(probe, weight, eps))


def epsilon(module: nn.Module) -> float | None:
    """The module's ε, whatever its code calls it."""
    found = (getattr(module, name, None) for name in ("variance_epsilon", "eps", "epsilon"))
    return next((e for e in found if isinstance(e, float)), None)


def forward_of(cls: type[nn.Module]) -> Callable[..., Tensor]:
    """The forward of a fused RMSNorm: a weight that trains, or nothing to differentiate, takes the module's own."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if self.weight.requires_grad or not (torch.is_grad_enabled() and hidden_states.requires_grad):
            return cls.forward(self, hidden_states)
        return rms_norm(hidden_states, self.weight, epsilon(self) or 0.0)

    return forward


def lent(module: Any, cls: type[nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """The forward to lend while few rows are read: native, where the module proves at its first call to be an RMSNorm.

    None where its name is another's.
    """
    proven = cache(partial(fits, module, cls))

    def forward(x: Tensor) -> Tensor:
        if not unwatched(x) or x.numel() > SMALL or not proven():
            return cls.forward(module, x)
        y: Tensor = direct("norm", lambda *_: cls.forward(module, x), (x, module.weight, epsilon(module)))
        return y

    return forward if named(cls) else None


def named(cls: type[nn.Module]) -> bool:
    return "RMSNorm" in cls.__name__ or cls.__name__ == "T5LayerNorm"
