"""The products of `quant.ops` in native code: few rows of x with a weight as codes, or with one as it is.

What a product reads of a weight is checked once and written down in a structure: a token calls for hundreds of
products, and asking each tensor for its type, layout and size took as long as multiplying. An argument that is not
served is answered with NotImplemented, and the plain definition computes or raises. `noted` tells of the products
taken, and how to take them of other rows without asking at all.

A weight in float32 as it is would be multiplied in 0.3 to 0.8 of torch's time, but its sums run in another order, and
an adapter that starts as the identity shall change no bit of the base's answer: where `any_order` says so, then.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from operator import call, is_
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from featherweight.kernels.native import Factors, Weight, load
from featherweight.kernels.native_ops import TYPES, fits, packed4, packed8, plainly, pointer, scales_fit, serves
from featherweight.quant.ops import FEW, NESTED

ROWS = 64  # rows of x up to which the packed product is tried; it wins where few rows meet a large weight


WINS = {"scalar": 4, "avx2": 16, "avx512": ROWS}  # rows up to which a product of floats is faster than torch's


class Frame(NamedTuple):
    """A structure that native code reads, and how to tell that it still says where these tensors lie."""

    tensors: tuple[ref[Tensor], ...]
    places: tuple[int, ...]
    said: Any
    address: Any  # keeps the structure alive


frames: dict[int, Frame] = {}  # by the id of the first tensor


def framed(tensors: tuple[Tensor, ...], said: Any, make: Callable[..., ctypes.Structure | None]) -> Any:
    """The address of `make(tensors, said)`, which checks them, asked once while they are these very tensors in these
    places; None where it gives None.
    """
    key, places = id(tensors[0]), tuple(map(Tensor.data_ptr, tensors))
    frame = frames.get(key)
    if frame and frame.places == places and frame.said == said and all(map(is_, map(call, frame.tensors), tensors)):
        return frame.address
    struct = make(tensors, said)
    if struct is None:
        return None
    refs = (ref(tensors[0], partial(forget, key)), *map(ref, tensors[1:]))
    frames[key] = Frame(refs, places, said, ctypes.byref(struct))
    return frames[key].address


def forget(key: int, gone: ref[Tensor]) -> None:
    if key in frames and frames[key].tensors[0] is gone:
        del frames[key]


def weight4(tensors: tuple[Tensor, ...], said: tuple[int, int, int]) -> Weight | None:
    """Of (codes, absmax, table) or (codes, codes of scales, table, and table, absmax and offset of those)."""
    (codes, absmax, table, *nested), (n, k, block) = tensors, said
    if k % 2 or not packed4(codes, absmax, table, block, n * k, torch.uint8 if nested else torch.float32):
        return None  # a row must begin at a byte
    if nested and not scales_fit((n * k + block - 1) // block, NESTED, *nested):
        return None
    at = (codes.data_ptr(), None if nested else absmax.data_ptr(), table.data_ptr())
    coded = (absmax.data_ptr(), *(t.data_ptr() for t in nested)) if nested else (None,) * 4
    return Weight(*at, *coded, n, k, block, NESTED)


def weight8(tensors: tuple[Tensor, ...], said: tuple[int, int, int]) -> Weight | None:
    """Of (codes, scales)."""
    (codes, scale), (n, k, block) = tensors, said
    if not packed8(codes, scale, block, n * k):
        return None
    return Weight(codes=codes.data_ptr(), scale=scale.data_ptr(), n=n, k=k, block=block)


def weight_itself(tensors: tuple[Tensor, ...], said: torch.dtype) -> Weight | None:
    """Of (W,)."""
    W = tensors[0]
    if not (fits(W, said, 1) and W.dim() == 2):
        return None
    return Weight(codes=W.data_ptr(), n=W.shape[0], k=W.shape[1])


def factors(tensors: tuple[Tensor, ...], said: tuple[int, int]) -> Factors | None:
    """Of (A, B)."""
    (A, B), (n, k) = tensors, said
    if not all(t.dtype in TYPES and fits(t, t.dtype) for t in tensors):
        return None
    if A.shape[1:] != (k,) or B.shape != (n, A.shape[0]):
        return None
    return Factors(A.data_ptr(), B.data_ptr(), A.shape[0], TYPES[A.dtype], TYPES[B.dtype])


class Made(NamedTuple):
    """A product that was taken: y of x; `again` gives that of other rows of x's dtype and width."""

    x: Tensor
    y: Tensor
    again: Callable[[Tensor], Tensor]


notes: ContextVar[list[Made] | None] = ContextVar("notes", default=None)


@contextmanager
def noted() -> Iterator[list[Made]]:
    """The products taken inside, in their order."""
    made: list[Made] = []
    token = notes.set(made)
    try:
        yield made
    finally:
        notes.reset(token)


def multiply(run: Any, held: Any, weight: Any, low: Any, c: float, bias: Tensor | None, n: int, x: Tensor) -> Tensor:
    """`held` are the tensors that `weight` and `low` point into."""
    x = x.contiguous()
    shape = x.shape
    y = torch.empty((*shape[:-1], n), dtype=x.dtype)
    run(
        weight, low, c, x.data_ptr(), TYPES[x.dtype], pointer(bias), 0 if bias is None else TYPES[bias.dtype],
        y.data_ptr(), x.numel() // shape[-1], torch.get_num_threads(),
    )  # fmt: skip
    return y


def product(
    run: Any, tensors: tuple[Tensor, ...], weight: Any, x: Tensor, n: int, k: int, bias: Tensor | None,
    A: Tensor | None, B: Tensor | None, c: float,
) -> Any:  # fmt: skip
    """The packed product of few rows; what needs a gradient is the plain one's."""
    rows = x.numel() // k
    if weight is None or not (0 < rows <= ROWS and plainly(x) and x.dtype in TYPES and x.shape[-1] == k):
        return NotImplemented
    grad = torch.is_grad_enabled()
    if grad and x.requires_grad:
        return NotImplemented
    if bias is not None and not (bias.dtype in TYPES and fits(bias, bias.dtype) and bias.shape == (n,)):
        return NotImplemented
    low = None
    if A is not None:
        if B is None or (grad and (A.requires_grad or B.requires_grad)):
            return NotImplemented
        low = framed((A, B), (n, k), factors)
        if low is None:
            return NotImplemented
    again = partial(multiply, run, (tensors, A, B), weight, low, c, bias, n)
    y = again(x)
    made = notes.get()
    if made is not None:
        made.append(Made(x, y, again))
    return y


@serves("linear4")
def linear4(
    run: Any, x: Tensor, codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: Sequence[int],
    bias: Tensor | None, A: Tensor | None, B: Tensor | None, c: float, nested: Sequence[Tensor] = (),
) -> Any:  # fmt: skip
    n, k = shape
    tensors = (codes, absmax, table, *nested)
    return product(run, tensors, framed(tensors, (n, k, block), weight4), x, n, k, bias, A, B, c)


@serves("linear8")
def linear8(
    run: Any, x: Tensor, codes: Tensor, scale: Tensor, block: int, shape: Sequence[int], bias: Tensor | None
) -> Any:
    n, k = shape
    tensors = (codes, scale)
    return product(run, tensors, framed(tensors, (n, k, block), weight8), x, n, k, bias, None, None, 0.0)


order: ContextVar[bool] = ContextVar("order", default=False)


@contextmanager
def any_order() -> Iterator[None]:
    """Inside, sums of float32 may run in another order than torch's."""
    token = order.set(True)
    try:
        yield
    finally:
        order.reset(token)


def most_rows(dtype: torch.dtype) -> int:
    """Rows of x of this dtype up to which they are few."""
    return WINS.get(load().level or "", 0) if dtype is torch.float32 else FEW


@serves("linear")
def linear(
    run: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor | None = None, B: Tensor | None = None,
    c: float = 0.0,
) -> Any:  # fmt: skip
    if W.dim() != 2 or x.numel() > most_rows(x.dtype) * W.shape[1] or (x.dtype is torch.float32 and not order.get()):
        return NotImplemented
    if W.requires_grad and torch.is_grad_enabled():
        return NotImplemented
    n, k = W.shape
    return product(run, (W,), framed((W,), x.dtype, weight_itself), x, n, k, bias, A, B, c)


@serves("bank")
def bank(run: Any, x: Tensor, y: Tensor, A: Tensor, B: Tensor, at: Tensor, of: Tensor) -> Any:
    """Add to y (rows, t, out), in place, what the adapters A (·, r, in) and B (·, r, out) give for x (rows, t, in): row
    at[i] has adapter of[i], int64. All in one dtype."""
    (rows, t, k), (adapters, rank, n) = x.shape, B.shape
    if x.dtype not in TYPES or not all(fits(z, x.dtype) for z in (x, y, A, B)):
        return NotImplemented
    if A.shape != (adapters, rank, k) or y.shape != (rows, t, n):
        return NotImplemented
    run(
        x.data_ptr(), TYPES[x.dtype], A.data_ptr(), B.data_ptr(), y.data_ptr(), at.data_ptr(), of.data_ptr(), len(of),
        t, rank, k, n, torch.get_num_threads(),
    )  # fmt: skip
    return y
