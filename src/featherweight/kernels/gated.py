"""SwiGLU's product: y = silu(a) · b, recomputed from a and b in backward.

    da = dy · b · silu'(a)      db = dy · silu(a)

a, b, y (..., d). Shazeer 2020, "GLU Variants Improve Transformer". Autograd keeps silu(a) beside a and b; here only a
and b.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.kernels.first import first_derivative


def silu_product(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) · b, same shape. First derivatives only: a second backward raises RuntimeError."""
    return SiluProduct.apply(a, b) if torch.is_grad_enabled() else F.silu(a).mul_(b)


class SiluProduct(torch.autograd.Function):
    """The module's equations; arguments (a, b)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    @first_derivative
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * b, a), F.silu(a).mul_(dy)


def stand_in(module: nn.Module, cls: type[nn.Module]) -> Any:
    """A copy of a gated MLP with small maps in place of its projections."""
    copy = object.__new__(cls)
    maps: Any = {"gate_proj": lambda x: x + 1, "up_proj": lambda x: 2 * x - 1, "down_proj": lambda x: x * 3}
    copy.__dict__ |= module.__dict__ | {"_modules": module._modules | maps}
    return copy


def fits(module: nn.Module, cls: type[nn.Module]) -> bool:
    """gate_proj, up_proj, down_proj and a SiLU, whose forward is down(silu(gate(x)) · up(x)): run on a probe to see."""
    children = set(module._modules)
    if children != {"gate_proj", "up_proj", "down_proj", "act_fn"} or not is_silu(module.act_fn):
        return False
    probe = torch.linspace(-3, 3, 16).view(2, 8)
    mlp = stand_in(module, cls)
    with torch.no_grad():
        return torch.equal(cls.forward(mlp, probe), product_of(mlp, probe))


def is_silu(act: Any) -> bool:
    return isinstance(act, nn.SiLU) or type(act).__name__ == "SiLUActivation"


def product_of(mlp: Any, x: Tensor) -> Tensor:
    return mlp.down_proj(silu_product(mlp.gate_proj(x), mlp.up_proj(x)))


def forward_of(cls: type[nn.Module]) -> Callable[..., Tensor]:
    """The forward of a fused gated MLP."""
    return product_of
