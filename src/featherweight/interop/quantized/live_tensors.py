"""Live layers whose weight is a tensor subclass with `dequantize()`: torchao's, and others of that make.

    nn.Linear   weight: Int8Tensor, IntxUnpackedToInt8Tensor, Float8Tensor ...        Ŵ = weight.dequantize()

The library's own product runs where no gradient is asked for. Where one is, Ŵ is decoded in both directions and only
the codes are kept: torchao's dynamically quantized activations, and more of its formats, give the input no gradient and
say nothing. With such activations the two differ by what rounding the input costs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from featherweight.interop.quantized.live import Codec, Library, Opened, refused


class Subclassed(Codec):
    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return packed["weight"].dequantize().to(dtype)


def wrapper(tensor: Any) -> bool:
    return is_traceable_wrapper_subclass(tensor)


class Tensors(Library):
    def opened(self, module: Any) -> Opened | None:
        weight: Any = module._parameters.get("weight")
        kind: Any = type(weight)
        if kind in (nn.Parameter, Tensor, type(None)) or kind.dequantize is Tensor.dequantize or not wrapper(weight):
            return None
        name = f"{kind.__module__.split('.')[0]} {kind.__name__}"
        return Opened(Subclassed(), {"weight": weight}, tuple(weight.shape), weight.dtype, name, refused)

    def runs(self, module: Any, x: Tensor) -> bool:
        bias = module.bias
        return not (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)))
