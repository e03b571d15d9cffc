"""The scheme contract: a frozen dataclass that is a stateless codec. One number format, one file.

    W  --encode-->  {"codes": ..., "absmax": ..., ...}  --decode-->  Ŵ

A scheme holds no tensor of a model and keeps no state, so it is passed where autograd and the compiler want constants.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from featherweight.core.noun import Noun
from featherweight.quant import ops
from featherweight.quant.scratch import scratch

Packed = dict[str, Tensor]  # name of a packed tensor -> the tensor; what a quantized module keeps as buffers
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # the same names -> dtype and shape, known without data


@dataclass(frozen=True, repr=False)
class Scheme(Noun):
    """A number format for frozen weights. Every scheme takes every shape, or says in one error which it does not."""

    paper: ClassVar[str] = ""  # authors, year and where

    @property
    def calibrated(self) -> bool:
        """Whether `encode` needs inputs seen on data."""
        return False

    @property
    def stacks(self) -> bool:
        """Whether the matrices of experts can be kept so: nothing is known of what each of them will read."""
        return not self.calibrated

    @property
    def idempotent(self) -> bool:
        """Whether encoding what was decoded gives the same codes."""
        return True

    def watch(self, features: int) -> Any:
        """What gathers the inputs of one module, x (tokens, in) at a time by `.add(x)`; then it is `seen`."""
        raise NotImplementedError(f"{type(self).__name__} needs no data")

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        """A float tensor of any shape -> its packed tensors. `seen` is what calibration recorded of a module's inputs.

        Raises InputError for an empty tensor, a scalar and what holds no floats. NaN and infinity stay in sight: what
        shares a scale with one decodes to nothing finite (with `double`, what shares a scale of scales), and all else
        as if it were not there.
        """
        raise NotImplementedError(f"{type(self).__name__} must encode")

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The packed tensors -> Ŵ of this shape and dtype; products are taken in fp32, then cast."""
        raise NotImplementedError(f"{type(self).__name__} must decode")

    def rows(self, packed: Mapping[str, Tensor], shape: tuple[int, int], index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of Ŵ (out, in) by number, (n, in): what an embedding looks up. Some decode these alone."""
        return self.decode(packed, shape, dtype)[index]

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Names, dtypes and shapes of what `encode` gives for a tensor of this shape: what the planner counts and a
        checkpoint is held against.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it stores")

    def bound(self, W: Tensor) -> Tensor:
        """The guaranteed |W - Ŵ|, broadcastable to W: a law of every scheme on every shape."""
        raise NotImplementedError(f"{type(self).__name__} must bound its error")

    def linear(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        """x (..., in) through Ŵ (out, in): decode and multiply, unless a scheme computes on its codes."""
        from featherweight.quant.decoded import decoded_linear

        return decoded_linear(x, packed, self, shape, bias)

    def product(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        """x (..., in) -> x Ŵᵀ + b (..., out), in x's dtype and without gradients: what `linear` runs forward."""
        with scratch():
            return F.linear(x, self.decode(packed, shape, x.dtype), bias)

    def adapted(
        self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None,
        A: Tensor, B: Tensor, c: float,
    ) -> Tensor:  # fmt: skip
        """`product` + c x Aᵀ Bᵀ, A (r, in) and B (out, r) of any dtype: what a low-rank adapter adds, not trained."""
        return ops.add_low(self.product(x, packed, shape, bias), x, A, B, c)

    def input_gradient(self, g: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """g (..., out) -> g Ŵ (..., in), in g's dtype: what `linear` runs backward."""
        with scratch():
            return g.matmul(self.decode(packed, shape, g.dtype))

    def unpacked(self, packed: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor | None:
        """The codes, uint8 each, where they are kept in another way than `packing` packs them; None else."""
        return None

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes stored for a tensor of this shape."""
        return sum(dtype.itemsize * prod(dims) for dtype, dims in self.layout(shape).values())
