"""Linear layers where few rows meet them, as in generation: y = x Wᵀ + b at the memory's pace, and little around it.

A token calls for hundreds of products, and the way to one (adapters, number format, what native code may read) takes as
long as a third of it. `few_rows(model)` lends every linear layer another forward for a while: the layer's own runs
once, and where its answer is one native product of its very input, that product is taken again from then on. Plain
layers in bfloat16 are served natively too: torch's product of one row reads such a weight at a third of the memory's
bandwidth, and the head of a language model is its largest matrix.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.host import base_modules
from featherweight.core.precision import compute_dtype
from featherweight.kernels.native_linear import noted
from featherweight.quant.linear import Multiplied
from featherweight.quant.ops import FEW, eager, linear16


@contextmanager
def few_rows(model: nn.Module) -> Iterator[None]:
    """Inside, the model's linear layers (over floats or codes, hosts too) take few rows by the shortest way. Weights
    stay as they are meanwhile; adapters may be switched."""
    layers: list[Any] = [m for _, m in base_modules(model) if fits(m)]
    for layer in layers:
        layer.forward = lent(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def fits(module: nn.Module) -> bool:
    """A linear layer whose forward nobody replaced."""
    return isinstance(module, nn.Linear | Multiplied) and "forward" not in vars(module)


def plain16(module: nn.Module) -> bool:
    """Over a weight in bfloat16 as it is, which torch's product would read."""
    return type(module) is nn.Linear and module.weight.dtype is torch.bfloat16 and module.weight.is_cpu


def forward16(layer: nn.Linear, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() or compute_dtype(x) is not layer.weight.dtype:
        return type(layer).forward(layer, x)
    return linear16(x, layer.weight, layer.bias)


def lent(layer: Any) -> Callable[..., Tensor]:
    """The forward to lend to a layer."""
    own = partial(forward16 if plain16(layer) else type(layer).forward, layer)
    switch = getattr(layer, "switch", None)
    dtype = k = turn = None
    again: Any = None

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal dtype, k, turn, again
        if kwargs or len(args) != 1:
            return type(layer).forward(layer, *args, **kwargs)
        (x,) = args
        if not few(x):
            return own(x)
        now = None if switch is None else switch.turn
        if x.dtype is dtype and x.shape[-1] == k and now is turn:
            return again(x)
        with torch.inference_mode(False), torch.no_grad(), noted() as made:  # tensors there count what writes to them
            y = own(x)
        if len(made) == 1 and made[0].x is x and made[0].y is y and not y._version:
            dtype, k, turn, again = x.dtype, x.shape[-1], now, made[0].again
        return y

    return forward


def few(x: Tensor) -> bool:
    """Few rows on a CPU, of which nothing but the product is asked: no gradient, no cast, nobody who watches."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and 0 < x.numel() <= FEW * x.shape[-1]
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and eager()
    )
