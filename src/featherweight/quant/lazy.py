"""A stack of experts' matrices that is decoded where it is used, one matrix at a time, and never kept.

    stack[e]             the codes of one expert, still lazy      x @ stack[e].T  =  the scheme's product on its codes
    grouped_mm(x, stack.mT, ends)    expert by expert, those without tokens left out

It is a tensor to whoever holds it: with shape, dtype and device, and autograd keeps *it* for backward, which costs
nothing, so that dx = g Ŵₑ decodes again. What is not served on codes (an elementwise product, say) gets all of Ŵ, for
the length of the operation. Writing to it is an error.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from featherweight.core.blank import is_bare
from featherweight.core.errors import InputError, Problem
from featherweight.quant.each import Each, one
from featherweight.quant.scheme import Scheme

aten = torch.ops.aten


class Held(NamedTuple):
    """Codes of (E, out, in). `at`: all of it (None), one matrix, or a matrix for each number of a list."""

    scheme: Scheme
    packed: Mapping[str, Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype
    turned: bool = False  # seen as (in, out)
    at: int | Tensor | None = None

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape and the strides as seen."""
        count, out, into = self.shape
        lead = () if isinstance(self.at, int) else (count if self.at is None else len(self.at),)
        strides = (*(out * into for _ in lead), into, 1)
        if self.turned:
            return (*lead, into, out), (*strides[:-2], 1, into)
        return (*lead, out, into), strides


class Lazy(Tensor):
    """A view of a stack of codes."""

    held: Held
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Held) -> "Lazy":
        size, strides = held.sizes
        device = next(iter(held.packed.values())).device
        made: Lazy = Tensor._make_wrapper_subclass(cls, size, strides=strides, dtype=held.dtype, device=device)
        made.held = held
        return made

    def __init__(self, held: Held): ...

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Lazy({tuple(self.shape)}, {self.held.scheme!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch.no_grad():
            served = SERVED.get(func)
            result = NotImplemented if served is None else served(*args, **kwargs)
            if result is not NotImplemented:
                return result
            if func._schema.is_mutable:
                fix = "fw.dequantize(model) first"
                raise InputError(Problem("experts kept as codes cannot be written", str(func), fix=fix))
            return func(*tree_map_only(Lazy, dense, args), **tree_map_only(Lazy, dense, kwargs))


def dense(lazy: Lazy) -> Tensor:
    """Ŵ as it is seen."""
    h = lazy.held
    if isinstance(h.at, int):
        W = h.scheme.decode(one(h.packed, h.at), h.shape[1:], h.dtype)
    elif h.at is None:
        W = Each(h.scheme).decode(h.packed, h.shape, h.dtype)
    else:
        used, which = h.at.unique(return_inverse=True)
        some = {name: tensor[used] for name, tensor in h.packed.items()}
        W = Each(h.scheme).decode(some, (len(used), *h.shape[1:]), h.dtype)[which]
    return W.mT if h.turned else W


def times(x: Tensor, lazy: Lazy, e: int) -> Tensor:
    """x (n, a) times matrix e (a, b), on its codes."""
    h, shape = lazy.held, (lazy.held.shape[1], lazy.held.shape[2])
    if h.turned:
        return h.scheme.product(x, one(h.packed, e), shape, None)
    return h.scheme.input_gradient(x, one(h.packed, e), shape)


def turned(lazy: Lazy, *dims: Any) -> Any:
    """The last two dimensions exchanged."""
    n = lazy.dim()
    if dims and {d % n for d in dims} != {n - 2, n - 1}:
        return NotImplemented
    return Lazy(lazy.held._replace(turned=not lazy.held.turned))


def selected(lazy: Lazy, dim: int, index: int) -> Any:
    at = lazy.held.at
    if dim % lazy.dim() or lazy.dim() != 3:
        return NotImplemented
    e = range(len(lazy))[index]
    return Lazy(lazy.held._replace(at=e if at is None else int(at[e])))  # type: ignore[index]


def indexed(lazy: Lazy, indices: list[Tensor | None]) -> Any:
    (first, *rest) = indices
    if lazy.held.at is not None or rest or first is None or first.is_floating_point() or first.dtype == torch.bool:
        return NotImplemented
    if first.dim() == 0:
        return selected(lazy, 0, int(first))
    return Lazy(lazy.held._replace(at=first % len(lazy))) if first.dim() == 1 else NotImplemented


def same(lazy: Lazy) -> Lazy:
    return Lazy(lazy.held)


def copied(lazy: Lazy, **options: Any) -> Any:
    """To another dtype."""
    dtype = options.pop("dtype", None) or lazy.dtype
    there = {k: v for k, v in options.items() if k in ("device", "layout", "pin_memory") and v}
    if any(v != getattr(lazy, k, None) for k, v in there.items()):
        return NotImplemented
    return Lazy(lazy.held._replace(dtype=dtype))


def mm(x: Any, lazy: Any) -> Any:
    if not isinstance(lazy, Lazy) or isinstance(x, Lazy):
        return NotImplemented
    return times(x, lazy, lazy.held.at)  # type: ignore[arg-type]


def addmm(bias: Any, x: Any, lazy: Any, **factors: Any) -> Any:
    if not isinstance(lazy, Lazy) or isinstance(x, Lazy) or isinstance(bias, Lazy) or factors:
        return NotImplemented
    return mm(x, lazy) + bias


def bmm(x: Any, lazy: Any) -> Any:
    """x (B, n, a) times a matrix for each (B, a, b): matrices that occur again are used once."""
    if isinstance(x, Lazy):
        return NotImplemented if isinstance(lazy, Lazy) else bmm(lazy.mT, turned(x)).mT
    at = lazy.held.at
    numbers = torch.arange(len(lazy), device=x.device) if at is None else at
    if is_bare(numbers):
        return NotImplemented
    y = x.new_empty(*x.shape[:2], lazy.shape[2])
    for e in numbers.unique().tolist():
        mine = numbers == e
        y[mine] = times(x[mine].flatten(0, 1), lazy, e).view(-1, x.shape[1], lazy.shape[2])
    return y


def grouped_mm(x: Any, lazy: Any, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None) -> Any:
    """Rows of x (n, a), sorted by expert, each group times its expert's matrix (a, b); `offs` is where groups end."""
    if not isinstance(lazy, Lazy) or isinstance(x, Lazy) or x.dim() != 2 or offs is None or bias is not None:
        return NotImplemented
    y = x.new_zeros(len(x), lazy.shape[2], dtype=out_dtype or x.dtype)
    start = 0
    for e, end in enumerate(ends(offs, len(x))):
        if start < end:
            y[start:end] = times(x[start:end], lazy, e)
        start = end
    return y


def ends(offs: Tensor, rows: int) -> list[int]:
    """The numbers; where there are shapes alone, as if all experts had as many rows."""
    count = len(offs)
    return [rows * (e + 1) // count for e in range(count)] if is_bare(offs) else [int(n) for n in offs.tolist()]


SERVED: dict[Any, Callable[..., Any]] = {
    aten.detach.default: same, aten.alias.default: same, aten._to_copy.default: copied,
    aten.t.default: turned, aten.transpose.int: turned, aten.select.int: selected, aten.index.Tensor: indexed,
    aten.mm.default: mm, aten.addmm.default: addmm, aten.bmm.default: bmm, aten._grouped_mm.default: grouped_mm,
}  # fmt: skip
