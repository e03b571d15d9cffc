"""LLM.int8(): vector-wise int8 products, with the few outlier features of the input in floating point.

    y = Σ_{h∈O} x_h Ŵ_hᵀ  +  (1/127²) a_x ⊗ a_w ∘ Σ_{h∉O} q_h C_hᵀ  +  b        O = {h : some |x_th| ≥ threshold}

C (out, in) int8 and a_w (out,): the codes and the absmax of each row of W, Ŵ = C a_w / 127
q, a_x (n,): the same of each token of x without the columns O, found anew at every call, over all its rows

Only codes are stored, so the outlier columns of W are decoded ones, as in bitsandbytes; the paper, whose base stays in
16 bits, has the original ones. On synthetic outliers the error is 0.044 without O, 0.0076 with decoded columns and
0.0022 with original ones: what is left is the rounding of W. `keep=k` stores the original columns of the k features
that were largest on calibration data, in float32 beside the codes (codes 0 there): these are always in O.

Training runs on the codes as well: dL/dx = g Ŵ with g ∘ a_w / 127 quantized by row (`backward="int8"`), or over the
decoded weight (`backward="exact"`), which costs a product in the compute dtype.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.quant import clip as clipping
from featherweight.quant import fields, int8, ops
from featherweight.quant.scheme import Layout, Packed, Scheme

BACKWARD = ("int8", "exact")


@dataclass(frozen=True, repr=False)
class LLMInt8(Scheme):
    """`threshold` makes a feature an outlier, 0 none (plain vector-wise int8); `keep` original columns of W; `backward`
    computes input gradients on codes ("int8") or over the decoded weight ("exact"); `clip` None, a percentile of |w|,
    or "mse", of each row.
    """

    paper: ClassVar[str] = "Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339"

    threshold: float = 6.0
    keep: int = 0
    backward: str = "int8"
    clip: float | str | None = None

    def __post_init__(self) -> None:
        mine = (threshold(self), fields.whole(self, "keep", 0), fields.choice(self, "backward", BACKWARD))
        raise_all(p for found in (*mine, clipping.problems(self)) for p in found)

    @property
    def idempotent(self) -> bool:
        return self.clip in (None, "mse")

    @property
    def calibrated(self) -> bool:
        return self.keep > 0

    def watch(self, features: int) -> "Largest":
        return Largest(features)

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        M = fields.weight(self, W).view(matrix(tuple(W.shape))).float()
        at = self.largest(seen, M.shape[1]) if self.keep else None
        rest = self.clipped(M if at is None else M.index_fill(1, at, 0.0))
        packed = {"codes": ops.quantize_rows(rest)[0], "absmax": rest.abs().amax(1)}
        if at is None:
            return packed
        return packed | {"columns": at.int(), "kept": M.index_select(1, at)}

    def clipped(self, M: Tensor) -> Tensor:
        """The matrix with the range of each row cut."""
        plain = replace(self, clip=None, keep=0)
        return clipping.clipped(M.reshape(-1), self.clip, M.shape[1], lambda _: plain).view(M.shape)

    def largest(self, seen: Any, features: int) -> Tensor:
        """The columns to keep, ascending."""
        if seen is None:
            raise InputError(
                Problem("which columns to keep is known from data", "keep", got=repr(self.keep),
                        fix="calibrate on text, or keep=0")
            )  # fmt: skip
        return torch.as_tensor(seen.top).topk(min(self.keep, features)).indices.sort().values

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        M = packed["codes"].float() * (packed["absmax"] / 127)[:, None]
        if self.keep:
            M = M.index_copy(1, packed["columns"].long(), packed["kept"])
        return M.to(dtype).view(shape)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        n, k = matrix(shape)
        stored: Layout = {"codes": (torch.int8, (n, k)), "absmax": (torch.float32, (n,))}
        kept = min(self.keep, k)
        return stored | ({"columns": (torch.int32, (kept,)), "kept": (torch.float32, (n, kept))} if kept else {})

    def bound(self, W: Tensor) -> Tensor:
        M = W.reshape(matrix(tuple(W.shape))).float()
        rest = self.clipped(M)
        return (rest.abs().amax(1, keepdim=True) / 254 + (M - rest).abs()).view(W.shape)

    def product(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        y = int8.product(x.reshape(-1, shape[1]), *stored(packed), bias, self.threshold, self.original(packed))
        return y.view(*x.shape[:-1], shape[0])

    def input_gradient(self, g: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        if self.backward == "exact":
            return super().input_gradient(g, packed, shape)
        if g.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError('no second derivative through int8: LLMInt8(backward="exact") has one')
        dx = int8.input_gradient(g.reshape(-1, shape[0]), *stored(packed), self.original(packed))
        return dx.view(*g.shape[:-1], shape[1])

    def original(self, packed: Mapping[str, Tensor]) -> int8.Kept | None:
        return (packed["columns"], packed["kept"]) if self.keep else None


class Largest:
    """The largest |x| of each feature: `top` (features,)."""

    def __init__(self, features: int):
        self.top = torch.zeros(features)

    def add(self, x: Tensor) -> None:
        """x (tokens, features)."""
        self.top = torch.maximum(self.top.to(x.device), x.detach().abs().amax(0).float())


def threshold(noun: LLMInt8) -> Iterator[Problem]:
    value = noun.threshold
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        yield Problem("not a valid value", "LLMInt8.threshold", "0 for none, or a number above it", repr(value))


def stored(packed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(codes, scales of the rows)."""
    return packed["codes"], packed["absmax"] / 127


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of the matrix whose rows have a scale each: the last axis is summed over."""
    *lead, k = shape or (1,)
    return torch.Size(lead).numel(), k
