"""A model where few rows meet it, as in generation: its weights at the memory's pace, and little around them.

A token calls for hundreds of products, and the way to one (adapters, number format, what native code may read) takes as
long as a third of it. `few_rows(model)` lends modules another forward for a while:

    linear layers    the layer's own runs once, and where its answer is one native product of its very input, that
                     product is taken again from then on
    RMSNorm          `norm.lent`, native            attention    `few_attention.lent`: angles and one query, native

Plain layers are served natively too: torch's product of one row reads a weight at a third of the memory's bandwidth,
and the head of a language model is its largest matrix.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.host import Host, base_modules
from featherweight.core.precision import compute_dtype
from featherweight.kernels import few_attention, native_linear, norm
from featherweight.kernels.fuse import unfused
from featherweight.kernels.native_linear import any_order, noted
from featherweight.kernels.native_ops import TYPES
from featherweight.quant.linear import Multiplied
from featherweight.quant.ops import linear, unwatched


@contextmanager
def few_rows(model: nn.Module) -> Iterator[None]:
    """Inside, the model takes few rows by the shortest way. Its weights stay as they are meanwhile; adapters may be
    switched. What a module is not lent is its own, and one whose forward was replaced keeps that."""
    with ExitStack() as back:
        back.enter_context(any_order())
        for _, module in base_modules(model):
            forward = None if "forward" in vars(module) else forward_for(module)
            if forward is not None:
                module.forward = forward
                back.callback(delattr, module, "forward")
        yield


def forward_for(module: Any) -> Callable[..., Any] | None:
    """What a module is lent, None for nothing."""
    if isinstance(module, nn.Linear | Multiplied):
        return lent(module)
    if isinstance(module, Host):
        return None
    cls = unfused(type(module))
    return norm.lent(module, cls) or few_attention.lent(module, cls)


def plain(module: nn.Module) -> bool:
    """Over a weight as it is, which torch's product would read."""
    return type(module) is nn.Linear and module.weight.dtype in TYPES and module.weight.is_cpu


def plain_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() or compute_dtype(x) is not layer.weight.dtype:
        return type(layer).forward(layer, x)
    return linear(x, layer.weight, layer.bias)


def lent(layer: Any) -> Callable[..., Tensor]:
    """The forward to lend to a layer."""
    own = partial(plain_forward if plain(layer) else type(layer).forward, layer)
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
    return unwatched(x) and 0 < x.numel() <= native_linear.most_rows(x.dtype) * x.shape[-1]
