"""A module whose weight is kept as codes: its class changes in place, keys of other tensors stay.

    q_proj   Linear         weight (out, in), bias
    q_proj   QuantLinear    codes, absmax, ... (buffers), bias;   .weight decodes

`isinstance(m, nn.Linear)` stays true and whoever reads `m.weight` gets the decoded tensor. What is derived from codes
is never kept in the state dict.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from featherweight.core.base import lend, read, write
from featherweight.core.host import reclass
from featherweight.quant.scheme import Packed, Scheme


class Quantized:
    """Mixin of every quantized module class: `scheme`, the weight's `shape` and `dtype`, and the packed tensors."""

    plain: ClassVar[type[nn.Module]]  # what the module was, and what it becomes again
    encoded: ClassVar[tuple[str, ...]] = ("weight",)  # tensors that are decoded when read and cannot be trained
    _buffers: dict[str, Tensor | None]
    scheme: Scheme
    shape: tuple[int, ...]  # (out, in): rows of the matrix, whatever way round the plain module keeps it
    dtype: torch.dtype  # what `weight` decodes to: follows `.to(dtype)`, which leaves codes and scales alone
    packed_names: tuple[str, ...]

    @property
    def packed(self) -> Packed:
        return {name: self._buffers[name] for name in self.packed_names}  # type: ignore[misc]

    @property
    def weight(self) -> Tensor:
        """The decoded weight, made anew at each reading."""
        return self.scheme.decode(self.packed, self.shape, self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Packed tensors follow `.to(device)` and never `.to(dtype)`: scales in 16 bits would be other scales."""
        held = self.packed
        for name in held:
            self._buffers[name] = None
        super()._apply(fn, recurse)  # type: ignore[misc]
        probe = fn(torch.empty(0, dtype=self.dtype, device=next(iter(held.values())).device))
        self.dtype = probe.dtype
        for name, tensor in held.items():
            self._buffers[name] = tensor.to(probe.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.scheme!r}"  # type: ignore[misc]


class QuantLinear(Quantized, nn.Linear):  # type: ignore[override]
    """nn.Linear over codes."""

    plain = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        return self.scheme.linear(x, self.packed, self.shape, self.bias)  # type: ignore[arg-type]


CLASSES: dict[type[nn.Module], type[Any]] = {nn.Linear: QuantLinear}  # plain class -> its quantized class


def become_quantized(module: Any, scheme: Scheme, packed: Packed, dtype: torch.dtype | None = None) -> None:
    """Make a plain module a quantized one, in place: its weight goes, `packed` comes."""
    from featherweight.core.host import frozen_class

    W = module._parameters.pop("weight")
    module.scheme, module.shape, module.dtype = scheme, tuple(W.shape), dtype or W.dtype
    module.packed_names = tuple(packed)
    for name, tensor in packed.items():
        module.register_buffer(name, tensor)
    reclass(module, CLASSES[frozen_class(module)])


def become_plain(module: Any, W: Tensor) -> None:
    """Make a quantized module a plain one with the weight W, in place."""
    from featherweight.core.host import frozen_class

    for name in module.packed_names:
        del module._buffers[name]
    reclass(module, frozen_class(module).plain)
    module._parameters["weight"] = nn.Parameter(W, requires_grad=False)
    for name in ("scheme", "shape", "dtype", "packed_names"):
        del module.__dict__[name]


@lend.register(Quantized)
def lend_plain(host: Any, weights: Mapping[str, Tensor]) -> Callable[[], None]:
    """Over other tensors a quantized module runs as its plain class."""
    before, cls = dict(host._parameters), type(host)
    host._parameters.update(weights)
    if "weight" in weights:
        reclass(host, getattr(cls, "frozen_class", cls).plain)

    def back() -> None:
        host._parameters.clear()
        host._parameters.update(before)
        reclass(host, getattr(cls, "frozen_class", cls))

    return back


@read.register(Quantized)
def read_decoded(host: Any, name: str) -> Tensor:
    return getattr(host, name)


@write.register(Quantized)
def write_float(host: Any, name: str, W: Tensor) -> None:
    """Merging goes into floating point: codes would round most of a small adapter away."""
    if name == "weight":
        become_plain(host, W)
    else:
        getattr(host, name).data.copy_(W)
