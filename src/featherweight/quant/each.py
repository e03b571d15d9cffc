"""A stack of matrices in a number format: each matrix by itself, its packed tensors in a row of the stack's.

    W (E, out, in)   ->   codes (E, ...), absmax (E, ...)        Ŵ[e] = decode(codes[e], absmax[e])

No scale is shared across matrices, so that one of them is decoded, and computed with, alone.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.quant.scheme import Layout, Packed, Scheme


@dataclass(frozen=True)
class Each:
    """The codec of stacks that a scheme makes: `encode`, `decode`, `layout` as a scheme's, for shapes (E, out, in)."""

    scheme: Scheme

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        return self.gathered(len(W), (matrix.contiguous() for matrix in W))

    def gathered(
        self, count: int, matrices: Iterable[Tensor], see: Callable[[Tensor, Packed], object] = lambda *_: None
    ) -> Packed:
        """The stack of so many matrices, each had when its turn comes, shown to `see` with its codes, and let go."""
        packed: Packed = {}
        for e, matrix in enumerate(matrices):
            made = self.scheme.encode(matrix)
            see(matrix, made)
            for name, tensor in made.items():
                if not e:
                    packed[name] = tensor.new_empty((count, *tensor.shape))
                packed[name][e] = tensor
        return packed

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        out = next(iter(packed.values())).new_empty(shape, dtype=dtype)
        for e in range(shape[0]):
            out[e] = self.scheme.decode(one(packed, e), shape[1:], dtype)
        return out

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {name: (dtype, (shape[0], *dims)) for name, (dtype, dims) in self.scheme.layout(shape[1:]).items()}


def one(packed: Mapping[str, Tensor], e: int) -> Packed:
    """The packed tensors of one matrix of a stack, as views."""
    return {name: tensor[e] for name, tensor in packed.items()}


def codec(scheme: Scheme, shape: tuple[int, ...]) -> Scheme | Each:
    """What encodes a tensor of this shape: the scheme, or each matrix of a stack by it."""
    return Each(scheme) if len(shape) == 3 else scheme
