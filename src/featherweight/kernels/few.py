"""Plain linear layers in bfloat16 where few rows meet them, as in generation: y = x Wᵀ + b at the memory's pace.

torch's product of one row with a weight in bfloat16 reads it at a third of the memory's bandwidth on the processors
measured, and the head of a language model is its largest matrix: a third of the time of a token of a 4-bit model.
`few_rows(model)` lends every such layer another forward for a while; what it does not serve is the layer's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.host import base_modules
from featherweight.core.precision import compute_dtype
from featherweight.quant.ops import linear16


@contextmanager
def few_rows(model: nn.Module) -> Iterator[None]:
    """Inside, plain linear layers of the model (class nn.Linear itself, no hosts) take few rows through `linear16`."""
    layers: list[Any] = [m for _, m in base_modules(model) if fits(m)]
    for layer in layers:
        layer.forward = partial(forward, layer, type(layer).forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def fits(module: nn.Module) -> bool:
    """A linear layer on a CPU in bfloat16, whose forward nobody replaced."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    return module.weight.dtype is torch.bfloat16 and module.weight.is_cpu


def forward(layer: nn.Linear, own: Callable[..., Tensor], x: Tensor) -> Tensor:
    if torch.is_grad_enabled() or compute_dtype(x) is not layer.weight.dtype:
        return own(layer, x)
    return linear16(x, layer.weight, layer.bias)
