"""The operations of `quant.ops` in native code: same arguments, same bits. Importing it registers them.

An argument that the library does not serve (a device, a subclass, a layout, sizes that do not fit) is answered with
NotImplemented, and the plain definition computes or raises.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.kernels.native import load
from featherweight.quant.ops import FEW, native
from featherweight.quant.scratch import empty

TYPES = {torch.float32: 0, torch.bfloat16: 1}
ROWS = 64  # rows of x up to which the packed product is tried; it wins where few rows meet a large weight


def serves(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers `fn(function of the library, ...)`; the library is loaded at the first call."""

    def make(fn: Callable[..., Any]) -> Callable[..., Any]:
        def first(*args: Any) -> Any:
            found = load().functions.get(FUNCTION.get(name, name))
            if found is None:
                native.pop(name, None)
                return NotImplemented
            native[name] = partial(fn, found)
            return fn(found, *args)

        native[name] = first
        return fn

    return make


FUNCTION = {"linear4": "linear", "linear8": "linear"}


def fits(t: Tensor, dtype: torch.dtype, least: int = 0) -> bool:
    """A contiguous tensor of this dtype in the CPU's memory, of at least so many elements."""
    return (
        (type(t) is Tensor or type(t) is nn.Parameter)
        and t.is_cpu
        and t.dtype is dtype
        and t.is_contiguous()
        and t.numel() >= least
    )


def plainly(x: Tensor) -> bool:
    """Whether x's memory is ours to read; its layout and dtype may still be any."""
    return (
        (type(x) is Tensor or type(x) is nn.Parameter)
        and x.is_cpu
        and x.layout is torch.strided
        and x.is_floating_point()
    )


def readable(x: Tensor) -> Tensor:
    """x contiguous, in a dtype the library reads; what the plain definition widens first is widened here."""
    return (x if x.dtype in TYPES else x.float()).contiguous()


def floats(t: Tensor | None) -> Tensor | None:
    """A bias as contiguous float32."""
    return None if t is None else t.float().contiguous()


def pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


@serves("encode4")
def encode4(run: Any, x: Tensor, table: Tensor, block: int) -> Any:
    n = x.numel()
    if not (n and plainly(x) and fits(table, torch.float32, 16) and table.numel() == 16):
        return NotImplemented
    x = readable(x)
    codes = torch.empty((n + 1) // 2, dtype=torch.uint8)
    absmax = torch.empty((n + block - 1) // block)
    run(
        x.data_ptr(), TYPES[x.dtype], codes.data_ptr(), absmax.data_ptr(), table.data_ptr(), n, block,
        torch.get_num_threads(),
    )  # fmt: skip
    return codes, absmax


def packed4(codes: Tensor, absmax: Tensor, table: Tensor, block: int, n: int) -> bool:
    return (
        n > 0
        and fits(codes, torch.uint8, (n + 1) // 2)
        and fits(absmax, torch.float32, (n + block - 1) // block)
        and fits(table, torch.float32, 16)
    )


def packed8(codes: Tensor, scale: Tensor, block: int, n: int) -> bool:
    return n > 0 and fits(codes, torch.int8, n) and fits(scale, torch.float32, (n + block - 1) // block)


@serves("decode4")
def decode4(
    run: Any, codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: Sequence[int], dtype: torch.dtype
) -> Any:
    n = prod(shape)
    if not packed4(codes, absmax, table, block, n):
        return NotImplemented
    kind = dtype if dtype in TYPES else torch.float32
    out = empty(shape, kind)
    run(
        codes.data_ptr(), absmax.data_ptr(), table.data_ptr(), out.data_ptr(), TYPES[kind], n, block,
        torch.get_num_threads(),
    )  # fmt: skip
    return out.to(dtype)


@serves("decode8")
def decode8(run: Any, codes: Tensor, scale: Tensor, block: int, shape: Sequence[int], dtype: torch.dtype) -> Any:
    n = prod(shape)
    if not packed8(codes, scale, block, n):
        return NotImplemented
    kind = dtype if dtype in TYPES else torch.float32
    out = empty(shape, kind)
    run(codes.data_ptr(), scale.data_ptr(), out.data_ptr(), TYPES[kind], n, block, torch.get_num_threads())
    return out.to(dtype)


@serves("decode_scales")
def decode_scales(run: Any, codes: Tensor, table: Tensor, absmax: Tensor, offset: Tensor, block: int) -> Any:
    n = codes.numel()
    fine = (
        n
        and fits(codes, torch.uint8)
        and fits(table, torch.float32, 256)
        and fits(absmax, torch.float32, (n + block - 1) // block)
        and fits(offset, torch.float32, 1)
    )
    if not fine:
        return NotImplemented
    out = torch.empty(n)
    run(
        codes.data_ptr(), table.data_ptr(), absmax.data_ptr(), offset.data_ptr(), out.data_ptr(), n, block,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


@serves("quantize_rows")
def quantize_rows(run: Any, x: Tensor, skip: Tensor | None) -> Any:
    if not (plainly(x) and x.dim() == 2 and x.numel()):
        return NotImplemented
    n, k = x.shape
    if skip is not None and not (fits(skip, torch.bool) and skip.numel() == k):
        return NotImplemented
    x = readable(x)
    codes, scale = torch.empty((n, k), dtype=torch.int8), torch.empty(n)
    run(x.data_ptr(), TYPES[x.dtype], pointer(skip), codes.data_ptr(), scale.data_ptr(), n, k, torch.get_num_threads())
    return codes, scale


@serves("rescale")
def rescale(run: Any, acc: Tensor, row: Tensor, col: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Any:
    fine = fits(acc, torch.int32, 1) and acc.dim() == 2 and fits(row, torch.float32) and fits(col, torch.float32)
    if not (fine and dtype in TYPES and row.shape == acc.shape[:1] and col.shape == acc.shape[1:]):
        return NotImplemented
    if bias is not None and not (plainly(bias) and bias.shape == col.shape):
        return NotImplemented
    bias, (n, m) = floats(bias), acc.shape
    out = torch.empty((n, m), dtype=dtype)
    run(
        acc.data_ptr(), row.data_ptr(), col.data_ptr(), pointer(bias), out.data_ptr(), TYPES[dtype], n, m,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def linear(
    run: Any, x: Tensor, codes: Tensor, scale: Tensor, table: Tensor | None, block: int, shape: Sequence[int],
    bias: Tensor | None, A: Tensor | None = None, B: Tensor | None = None, c: float = 0.0,
) -> Any:  # fmt: skip
    """The packed product of few rows; what needs a gradient is the plain definition's."""
    n, k = shape
    rows = x.numel() // k
    if not (0 < rows <= ROWS and plainly(x) and x.dtype in TYPES and x.shape[-1] == k):
        return NotImplemented
    if x.requires_grad and torch.is_grad_enabled():
        return NotImplemented
    if bias is not None and not (plainly(bias) and bias.shape == (n,)):
        return NotImplemented
    x, bias = x.contiguous(), floats(bias)
    y = torch.empty((*x.shape[:-1], n), dtype=x.dtype)
    low = (None, 0, None, 0, 0) if A is None or B is None else factors(A, B)
    run(
        x.data_ptr(), TYPES[x.dtype], codes.data_ptr(), scale.data_ptr(), pointer(table), pointer(bias), y.data_ptr(),
        rows, n, k, block, torch.get_num_threads(), *low, c,
    )  # fmt: skip
    return y


def factors(A: Tensor, B: Tensor) -> tuple[int, int, int, int, int]:
    """Addresses and types of the low-rank factors, and the rank."""
    return A.data_ptr(), TYPES[A.dtype], B.data_ptr(), TYPES[B.dtype], A.shape[0]


@serves("linear4")
def linear4(
    run: Any, x: Tensor, codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: Sequence[int],
    bias: Tensor | None, A: Tensor | None, B: Tensor | None, c: float,
) -> Any:  # fmt: skip
    if shape[1] % 2 or not packed4(codes, absmax, table, block, prod(shape)):  # a row must begin at a byte
        return NotImplemented
    if A is not None and not (B is not None and low_rank(A, B, shape, x)):
        return NotImplemented
    return linear(run, x, codes, absmax, table, block, shape, bias, A, B, c)


def low_rank(A: Tensor, B: Tensor, shape: Sequence[int], x: Tensor) -> bool:
    """Factors that native code adds: where rows are few, and nothing is to be differentiated."""
    if x.numel() > FEW * shape[1] or (torch.is_grad_enabled() and (A.requires_grad or B.requires_grad)):
        return False
    fine = all(t.dtype in TYPES and fits(t, t.dtype) for t in (A, B))
    return fine and A.shape[1:] == (shape[1],) and B.shape == (shape[0], A.shape[0])


@serves("linear8")
def linear8(
    run: Any, x: Tensor, codes: Tensor, scale: Tensor, block: int, shape: Sequence[int], bias: Tensor | None
) -> Any:
    if not packed8(codes, scale, block, prod(shape)):
        return NotImplemented
    return linear(run, x, codes, scale, None, block, shape, bias)
