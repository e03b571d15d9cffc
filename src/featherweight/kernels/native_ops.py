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
from featherweight.quant.ops import native
from featherweight.quant.scratch import empty

TYPES = {torch.float32: 0, torch.bfloat16: 1}


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


FUNCTION = dict.fromkeys(("linear4", "linear8"), "linear")


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


def packed4(
    codes: Tensor, absmax: Tensor, table: Tensor, block: int, n: int, kind: torch.dtype = torch.float32
) -> bool:
    """Whether these are n codes, their scales (`kind`: uint8 where those are coded too) and a table."""
    return (
        n > 0
        and fits(codes, torch.uint8, (n + 1) // 2)
        and fits(absmax, kind, (n + block - 1) // block)
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


def scales_fit(n: int, block: int, table: Tensor, absmax: Tensor, offset: Tensor) -> bool:
    """Whether n scales in such blocks can be decoded with these."""
    return (
        fits(table, torch.float32, 256)
        and fits(absmax, torch.float32, (n + block - 1) // block)
        and fits(offset, torch.float32, 1)
    )


@serves("decode_scales")
def decode_scales(run: Any, codes: Tensor, table: Tensor, absmax: Tensor, offset: Tensor, block: int) -> Any:
    n = codes.numel()
    if not (n and fits(codes, torch.uint8) and scales_fit(n, block, table, absmax, offset)):
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
