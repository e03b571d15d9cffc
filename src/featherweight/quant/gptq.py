"""GPTQ: integers chosen so that a layer's outputs, not its weights, stay near: calibrated on inputs.

    min ‖W X - Ŵ X‖²        Ŵ_ok = s_go (q_ok - z_go),  g = group of input k        4 bits, group 128: 4.28 a parameter

`act_order` rounds the inputs that matter most first (groups are then made of these, and `g_idx` says which);
`static_groups` fits all scales beforehand and keeps groups as neighbors. The algorithm is in `gptq_solve`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.quant import bitstream, fields
from featherweight.quant.gptq_solve import Grid, alive, solve
from featherweight.quant.scheme import Layout, Packed, Scheme


class Hessian:
    """2 X Xᵀ / n as a running mean over the tokens seen, and their number."""

    def __init__(self, features: int):
        self.features, self.tokens, self.H = features, 0, torch.zeros(0, 0)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """x (tokens, in)."""
        if not self.tokens:
            wide = torch.promote_types(x.dtype, torch.float32)
            self.H = torch.zeros(self.features, self.features, dtype=wide, device=x.device)
        before, self.tokens = self.tokens, self.tokens + len(x)
        if len(x):
            x = x.to(self.H.dtype)
            self.H.addmm_(x.T, x, beta=before / self.tokens, alpha=2 / self.tokens)


@dataclass(frozen=True, repr=False)
class GPTQ(Scheme):
    """`group` inputs share a scale (-1: all of them); `damp` of the Hessian's mean diagonal is added to it."""

    paper: ClassVar[str] = "Frantar et al. 2022, GPTQ, arXiv:2210.17323"

    bits: int = 4
    group: int = 128
    act_order: bool = False
    damp: float = 0.01
    symmetric: bool = False
    static_groups: bool = False

    def __post_init__(self) -> None:
        flags = ("act_order", "symmetric", "static_groups")
        raise_all((*self.problems(), *(p for name in flags for p in fields.flag(self, name))))

    def problems(self) -> Iterator[Problem]:
        if self.bits not in (2, 3, 4, 8):
            yield Problem("not a width", "GPTQ.bits", "2, 3, 4 or 8", repr(self.bits))
        if self.group != -1:
            yield from fields.whole(self, "group")
        if not 0 <= self.damp < float("inf"):
            yield Problem("not a share of the mean diagonal", "GPTQ.damp", "0 or more, 0.01 as a rule", repr(self.damp))

    @property
    def calibrated(self) -> bool:
        return True

    def watch(self, features: int) -> Hessian:
        return Hessian(features)

    @property
    def scattered(self) -> bool:
        """Whether the inputs of a group are not neighbors, so that `g_idx` has to be kept."""
        return self.act_order and not self.static_groups and self.group != -1

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        """`seen` is a Hessian of W's inputs (its last dimension). A NaN spoils its own output and no other."""
        k = W.shape[-1] if W.dim() else 0
        H = self.checked(seen, W, k)
        order = alive(H).diagonal().argsort(descending=True, stable=True) if self.act_order else torch.arange(k)
        order = order.to(W.device)
        group, place = self.width(k), torch.arange(k, device=W.device)
        g = (order if self.static_groups else place) // group
        w = W.detach().reshape(-1, k).T.to(H.dtype)[order]
        codes, s, z = solve(w, H[order][:, order], Grid(self.bits, self.symmetric), group, g, self.damp,
                            self.static_groups)  # fmt: skip
        back = order.argsort()
        packed = {"codes": bitstream.pack(codes[back].T.nan_to_num(0).to(torch.uint8), self.bits), "scales": s.float()}
        if not self.symmetric:
            packed["zeros"] = bitstream.pack(z.nan_to_num(0).to(torch.uint8), self.bits)
        if self.scattered:
            packed["g_idx"] = g[back].int()
        return packed

    def checked(self, seen: Any, W: Tensor, k: int) -> Tensor:
        """A copy of the Hessian of what was seen, if it is one for this weight."""
        fields.weight(self, W)
        if not isinstance(seen, Hessian) or not seen.tokens:
            raise InputError(Problem("GPTQ needs the inputs of the layer", expected="data to calibrate on",
                                     fix="fw.quantize(model, scheme, batches=[...])"))  # fmt: skip
        if seen.features != k:
            raise InputError(Problem("the inputs seen are not this weight's", expected=f"{k} features",
                                     got=str(seen.features)))  # fmt: skip
        return seen.H.to(W.device, copy=True)

    def width(self, k: int) -> int:
        return k if self.group == -1 else min(self.group, k)

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        k, group = shape[-1], self.width(shape[-1])
        s = packed["scales"].T  # (out, groups)
        q = bitstream.unpack(packed["codes"], self.bits, k)
        z = s.new_full(s.shape, 1 << self.bits - 1) if self.symmetric else self.zeros(packed, len(q))
        if self.scattered:
            g = packed["g_idx"]
            return ((q - z[:, g]) * s[:, g]).to(dtype).view(shape)
        q = F.pad(q, (0, -k % group)).unflatten(1, (-1, group))
        return ((q - z[..., None]) * s[..., None]).flatten(1)[:, :k].to(dtype).reshape(shape)

    def unpacked(self, packed: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        return bitstream.unpack(packed["codes"], self.bits, shape[-1])

    def zeros(self, packed: Mapping[str, Tensor], out: int) -> Tensor:
        """The zero points as floats, (out, groups)."""
        return bitstream.unpack(packed["zeros"], self.bits, out).T.float()

    def layout(self, shape: tuple[int, ...]) -> Layout:
        k, out = shape[-1], prod(shape[:-1])
        groups = ceil(k / self.width(k))
        held: Layout = {
            "codes": (torch.uint8, (out, bitstream.stored(k, self.bits))),
            "scales": (torch.float32, (groups, out)),
        }
        if not self.symmetric:
            held["zeros"] = (torch.uint8, (groups, bitstream.stored(out, self.bits)))
        return held | ({"g_idx": (torch.int32, (k,))} if self.scattered else {})

    def bound(self, W: Tensor) -> Tensor:
        """Weights move away from W on purpose, so half a step bounds nothing. Where scales are fitted to W itself
        (static groups, whole rows), W and Ŵ both lie in the group's range widened by a step; else there is no bound.
        """
        if not self.static_groups and self.group != -1:
            return torch.full_like(W, torch.inf)
        k, group = W.shape[-1], self.width(W.shape[-1])
        w = F.pad(W.reshape(-1, k).float(), (0, -k % group)).unflatten(1, (-1, group))
        low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
        if self.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        reach = (high - low) * (1 + 2 / ((1 << self.bits) - 1))
        return reach[..., None].expand(w.shape).flatten(1)[:, :k].reshape(W.shape)
