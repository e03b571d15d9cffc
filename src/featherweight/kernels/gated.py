"""SwiGLU's product: y = silu(a) · b, recomputed from a and b in backward.

    da = dy · b · silu'(a)      db = dy · silu(a)

a, b, y (..., d). Shazeer 2020, "GLU Variants Improve Transformer". Autograd keeps silu(a) beside a and b; here only a
and b.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def silu_product(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) · b, same shape. First derivatives only: a second backward raises RuntimeError."""
    return SiluProduct.apply(a, b)


class SiluProduct(torch.autograd.Function):
    """The module's equations; arguments (a, b)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * b, a), F.silu(a).mul_(dy)


class Stand:
    """Stands in for a gated MLP: its own attributes, but small maps in place of the projections."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.gate_proj, self.up_proj, self.down_proj = (lambda x: x + 1), (lambda x: 2 * x - 1), (lambda x: x * 3)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def fits(module: nn.Module, cls: type[nn.Module]) -> bool:
    """gate_proj, up_proj, down_proj and a SiLU, whose forward is down(silu(gate(x)) · up(x)): run on a probe to see."""
    children = set(module._modules)
    if children != {"gate_proj", "up_proj", "down_proj", "act_fn"} or not is_silu(module.act_fn):
        return False
    probe = torch.linspace(-3, 3, 16).view(2, 8)
    stand = Stand(module)
    with torch.no_grad():
        return torch.equal(cls.forward(stand, probe), product_of(stand, probe))


def is_silu(act: Any) -> bool:
    return isinstance(act, nn.SiLU) or type(act).__name__ == "SiLUActivation"


def product_of(mlp: Any, x: Tensor) -> Tensor:
    return mlp.down_proj(silu_product(mlp.gate_proj(x), mlp.up_proj(x)))


def forward_of(cls: type[nn.Module]) -> Callable[..., Tensor]:
    """The forward of a fused gated MLP."""
    return product_of
