"""Models whose linear layers keep codes, made the plain way: module by module."""

from typing import Any

from torch import nn

from featherweight.core.anatomy import anatomy
from featherweight.core.part import Part
from featherweight.quant import NF4, Quantized
from featherweight.quant.quantized import become_quantized


def coded(module: Any, scheme: Any = NF4(), dtype: Any = None) -> Any:  # noqa: B008  # frozen
    """The module itself, now a quantized one."""
    become_quantized(module, scheme, scheme.encode(Part(module).weight.detach().contiguous()), dtype)
    return module


def with_codes(model: nn.Module, scheme: Any = NF4()) -> Any:  # noqa: B008
    """The model, the linear layers of its blocks quantized."""
    for module in {id(s.module): s.module for s in anatomy(model).sites("linear")}.values():
        if not isinstance(module, Quantized):
            coded(module, scheme)
    return model


def quantized_modules(model: nn.Module) -> dict[str, Any]:
    return {p: m for p, m in model.named_modules() if isinstance(m, Quantized)}
