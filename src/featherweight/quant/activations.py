"""Activations in int8 too, so that a layer's product runs on integers: quantized as they come, or by a fixed range.

    y_to = s_t s_o Σ_k (q_tk - z_t)(c_ok - z_o) + b_o
         = s_t s_o (Σ q c  -  z_o Σ_k q_tk  -  z_t Σ_k c_ok  +  K z_t z_o) + b_o           sums in integers, exact

dynamic   scale and zero point of each token, from the token: better range, no data needed, more work
static    one of each for the layer, from an observer's range on calibration data: faster; stored with the weight,
          and so is the number of tokens that were seen
The kind of grid is the weight's: Absmax has symmetric activations (all z are 0), ZeroPoint affine ones. The gradient is
that of the layer over the decoded weight: rounding passes straight through (Bengio et al. 2013, arXiv:1308.3432).
Source: Jacob et al. 2017, arXiv:1712.05877.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem
from featherweight.quant import fields, observers, ops, ranges
from featherweight.quant.int8 import int_mm
from featherweight.quant.observers import Observer, observer

if TYPE_CHECKING:
    from featherweight.quant.scheme import Layout, Packed, Scheme
else:
    Scheme = object

INT32 = (2**31 - 1) // 255**2  # the longest sum of (q - z)(c - z) that int32 is sure to hold


@dataclass(frozen=True, repr=False, kw_only=True)
class Activations(Scheme):
    """What integer schemes share: `activations` None (floats), "dynamic" or "static"; `observer` of static ones:
    "minmax", "average", "mse" or a percentile. Integer products need weights of 8 bits, a scale per row or tensor.
    """

    activations: str | None = None
    observer: float | str = "minmax"

    symmetric: ClassVar[bool] = True  # the grid of activations

    def activation_problems(self) -> Iterator[Problem]:
        if self.activations is None:
            return
        noun: Any = self
        yield from fields.choice(self, "activations", ("dynamic", "static"))
        if noun.bits != 8 or noun.per not in fields.PER or getattr(noun, "zero", "integer") != "integer":
            needs = 'bits=8, per="row" or "tensor", and integer zero points'
            yield Problem("int8 activations are multiplied in integers", type(self).__name__, needs, repr(self))
        found = observers.problem(self)
        if found:
            yield found

    @property
    def calibrated(self) -> bool:
        return self.activations == "static"

    def watch(self, features: int) -> Observer:
        return observer(self.observer, self.symmetric)

    def recorded(self, W: Tensor, seen: Any) -> "Packed":
        """What is stored of the activations: with static ones their scale, zero point and how much data gave them."""
        if self.activations != "static":
            return {}
        if not isinstance(seen, Observer) or not seen.tokens:
            fix = 'fw.quantize(model, scheme, batches=[...]), or activations="dynamic"'
            raise InputError(Problem("static activations need the inputs of the layer", expected="batches", fix=fix))
        s, z = ranges.grid(*seen.range(), self.symmetric)
        held = {"x_scale": s.float(), "x_zero": z.to(torch.int8), "x_tokens": torch.tensor(seen.tokens)}
        return {name: tensor.view(1).to(W.device) for name, tensor in held.items()}

    def recording(self) -> "Layout":
        """The layout of what is stored of the activations."""
        if self.activations != "static":
            return {}
        return {"x_scale": (torch.float32, (1,)), "x_zero": (torch.int8, (1,)), "x_tokens": (torch.int64, (1,))}

    def product(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        if self.activations is None:
            return super().product(x, packed, shape, bias)
        codes = packed["codes"].view(shape)
        s = packed["scales"].expand(shape[0]).contiguous()
        q, row, zero = self.quantized(x.reshape(-1, shape[1]), packed)
        acc = int_mm(q, codes.t())
        if not self.symmetric:
            acc = centered(acc, q, codes, zero, packed["zeros"].expand(shape[0]))
        return ops.rescale(acc, row, s, bias, x.dtype).view(*x.shape[:-1], shape[0])

    def quantized(self, x: Tensor, packed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (n, in) -> codes int8, scales float32 (n,) and zero points (n,). A token with a NaN has scale NaN."""
        if self.activations == "dynamic" and self.symmetric:
            return (*ops.quantize_rows(x), x.new_zeros(()))
        wide = x.float()
        if self.activations == "dynamic":
            low, high = torch.aminmax(wide, dim=1)
            s, z = ranges.grid(low.clamp(max=0), high.clamp(min=0), False)
        else:
            s, z = packed["x_scale"].expand(len(x)), packed["x_zero"].float().expand(len(x))
            s = torch.where(wide.amax(1).isnan(), torch.nan, s) if wide.numel() else s
        q = ranges.codes(wide, s[:, None], z[:, None], self.symmetric).nan_to_num(0.0)
        return q.to(torch.int8), s, z


def centered(acc: Tensor, q: Tensor, codes: Tensor, zq: Tensor, zc: Tensor) -> Tensor:
    """Σ q c -> Σ (q - z)(c - z): int32, or float32 where that could overflow."""
    k = q.shape[1]
    wide = torch.int32 if k <= INT32 else torch.int64
    zq, zc = zq.nan_to_num(0.0).to(wide)[:, None], zc.to(wide)
    ones = codes.new_ones(1, k)  # a product of integers adds up bytes in a tenth of the time of a sum
    of_codes = int_mm(ones, codes.t())[0] if k <= INT32 else codes.sum(1, dtype=wide)
    exact = acc.to(wide) - zc * q.sum(1, keepdim=True, dtype=wide) - zq * of_codes + k * zq * zc
    return exact if wide is torch.int32 else exact.float()
