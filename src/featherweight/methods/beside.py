"""A tensor and a low-rank change beside it, W + s L R, that is never added up where it is only multiplied with.

    x @ (W + s L R)  =  x @ W + s (x @ L) @ R          of one matrix, of a batch of them, of groups of rows

L (..., a, r)   R (..., r, b)   W (..., a, b)

What runs over it sees one tensor, which may be indexed and turned. Gradients go to L and R; W stays what it is, codes
too, and no gradient of its size is made. Any other use gets the sum.
Source: Hu et al. 2021, arXiv:2106.09685.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only


class Sum(NamedTuple):
    """The equation's symbols."""

    W: Tensor
    L: Tensor
    R: Tensor
    s: float

    @property
    def mT(self) -> "Sum":
        return Sum(self.W.mT, self.R.mT, self.L.mT, self.s)

    def __getitem__(self, index: Any) -> "Sum":  # type: ignore[override]
        return Sum(self.W[index], self.L[index], self.R[index], self.s)

    def dense(self) -> Tensor:
        wide = torch.promote_types(self.W.dtype, self.L.dtype)
        return torch.add(self.W.to(wide), self.L @ self.R, alpha=self.s).to(self.W.dtype)


class Beside(Tensor):
    """The sum as a tensor."""

    of: Sum

    @staticmethod
    def __new__(cls, of: Sum) -> "Beside":
        like = of.W
        made: Beside = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )
        made.of = of
        return made

    def __init__(self, of: Sum): ...

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        served = SERVED.get(func)
        result = NotImplemented if served is None else served(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if getattr(func, "__name__", "") in ("__get__", "size", "dim", "numel", "stride", "is_floating_point"):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return summed(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return summed(func, args, kwargs or {})


def summed(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*tree_map_only(Beside, dense, args), **tree_map_only(Beside, dense, kwargs))


def dense(value: Beside) -> Tensor:
    return value.of.dense()


def indexed(whole: Beside, index: Any) -> Any:
    """One matrix of a stack by its number, or several."""
    number = isinstance(index, int) or (isinstance(index, Tensor) and index.dim() < 2 and index.dtype == torch.int64)
    return Beside(Sum.__getitem__(whole.of, index)) if number and whole.dim() == 3 else NotImplemented


def turned(whole: Beside, *dims: int) -> Any:
    n = whole.dim()
    return NotImplemented if dims and {d % n for d in dims} != {n - 2, n - 1} else Beside(whole.of.mT)


def linear(x: Any, weight: Any, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, Beside) or isinstance(x, Beside):
        return NotImplemented
    of = weight.of
    return plus(F.linear(x, of.W, bias), x, of.mT, torch.matmul)


def product(multiply: Callable[..., Tensor]) -> Callable[..., Any]:
    """The equation, for one way to multiply."""

    def multiplied(x: Any, whole: Any, *more: Any, **options: Any) -> Any:
        if isinstance(x, Beside):
            if isinstance(whole, Beside) or more or options:
                return NotImplemented
            return multiplied(whole.mT, turned(x)).mT
        times = multiply if not options else lambda a, b: multiply(a, b, **options)
        bare = not more and options.get("bias") is None and options.get("out_dtype") is None
        return plus(times(x, whole.of.W), x, whole.of, times) if bare else NotImplemented

    return multiplied


def plus(y: Tensor, x: Tensor, of: Sum, times: Callable[..., Tensor]) -> Tensor:
    """y + s (x L) R, in y's dtype."""
    x = x.to(y.dtype)
    return torch.add(y, times(times(x, of.L.to(y.dtype)), of.R.to(y.dtype)), alpha=of.s)


def exchanged(x: Any, whole: Any) -> Any:
    """x @ whole as Python may ask for it, from the right."""
    return product(torch.matmul)(whole, x)


SERVED: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: indexed, Tensor.transpose: turned, torch.transpose: turned, Tensor.t: turned,
    Tensor.mT.__get__: turned, Tensor.T.__get__: turned, F.linear: linear,  # type: ignore[attr-defined]
    torch.matmul: product(torch.matmul), Tensor.matmul: product(torch.matmul),
    Tensor.__matmul__: product(torch.matmul), Tensor.__rmatmul__: exchanged,
    torch.bmm: product(torch.bmm), Tensor.bmm: product(torch.bmm),
    F.grouped_mm: product(F.grouped_mm), torch._grouped_mm: product(torch._grouped_mm),
}  # fmt: skip
