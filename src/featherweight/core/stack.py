"""Modules of experts: several matrices of one shape in one tensor, (E, out, in), or (E, in, out) where they say so.

mlp.experts    gate_up_proj (E, 2 I, H), down_proj (E, H, I)
"""

from functools import singledispatch
from typing import Any

from torch.nn.modules.conv import _ConvNd


@singledispatch
def stacked(module: Any) -> list[str]:
    """The names of a module's weights of several experts, in its order; kernels of convolutions and tables (1, n, d)
    are none. Number formats register what they keep as codes.
    """
    own = () if isinstance(module, _ConvNd) else module._parameters.items()
    return [n for n, p in own if p is not None and p.dim() == 3 and len(p) > 1 and p.is_floating_point()]


def flipped(module: Any) -> bool:
    """Whether a module of experts keeps its matrices as (in, out)."""
    return bool(getattr(module, "is_transposed", False))
