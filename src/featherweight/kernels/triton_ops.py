"""The operations of `quant.ops` as Triton kernels for CUDA: same arguments, same meaning. Importing it registers them.

An argument that the kernels do not serve is answered with NotImplemented, and the plain definition computes or raises.
Triton is imported at the first call. Its interpreter (TRITON_INTERPRET=1) runs the kernels on a CPU.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.quant.ops import NESTED, add_low, cuda

TYPES = {torch.float32, torch.bfloat16, torch.float16}
SIZE, DEEP, COLS = 1024, 64, 32  # elements of a program; of a product: elements (or pairs) at a time, outputs
ROWS = 64  # rows of x up to which the packed product is tried
EXACT = {"enable_fp_fusion": False}  # a product and a sum stay two roundings


@cache
def kernels() -> Any:
    from featherweight.kernels import triton_kernels

    return triton_kernels


def fits(t: Tensor, like: Tensor, dtype: torch.dtype, least: int = 1) -> bool:
    """A contiguous tensor of this dtype where `like` is, of at least so many elements."""
    return (
        (type(t) is Tensor or type(t) is nn.Parameter)
        and t.device == like.device
        and t.dtype is dtype
        and t.is_contiguous()
        and t.numel() >= least
    )


def plainly(x: Tensor) -> bool:
    return (type(x) is Tensor or type(x) is nn.Parameter) and x.layout is torch.strided and x.is_floating_point()


def readable(x: Tensor) -> Tensor:
    """x contiguous, in a dtype the kernels read; what the plain definition widens first is widened here."""
    return (x if x.dtype in TYPES else x.float()).contiguous()


def pieces(n: int, size: int) -> int:
    return -(-n // size)


def power(n: int, most: int, least: int = 1) -> int:
    """The least power of two that holds n, within these."""
    return min(max(1 << (n - 1).bit_length(), least), most)


def packed(codes: Tensor, scale: Tensor, block: int, n: int, per_byte: int) -> bool:
    kind = torch.uint8 if per_byte == 2 else torch.int8
    return (
        n > 0 and fits(codes, codes, kind, pieces(n, per_byte)) and fits(scale, codes, torch.float32, pieces(n, block))
    )


def encode4(x: Tensor, table: Tensor, block: int) -> Any:
    n = x.numel()
    if not (n and plainly(x) and table.numel() == 16 and table.dtype is torch.float32):
        return NotImplemented
    x = readable(x).view(-1)
    values, order = table.to(x.device).sort(stable=True)
    middles, zero = (values[1:] + values[:-1]) / 2, table.abs().argmin().to(x.device)
    absmax = x.new_empty(pieces(n, block), dtype=torch.float32)
    deep = power(block, SIZE)
    many = SIZE // deep
    kernels().largest[(pieces(len(absmax), many),)](x, absmax, n, block, len(absmax), MANY=many, SIZE=deep)
    codes = x.new_empty(pieces(n, 2), dtype=torch.uint8)
    kernels().encode4[(pieces(len(codes), SIZE),)](x, absmax, middles, order, zero, codes, n, block, SIZE=SIZE)
    return codes, absmax


def decode4(codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: Sequence[int], dtype: torch.dtype) -> Any:
    n = prod(shape)
    if not (packed(codes, absmax, block, n, 2) and table.numel() == 16):
        return NotImplemented
    out = torch.empty(tuple(shape), dtype=dtype if dtype in TYPES else torch.float32, device=codes.device)
    grid = (pieces(n, 2 * SIZE),)
    kernels().decode4[grid](codes, absmax, table.to(codes.device), out, n, block, SIZE=SIZE)
    return out.to(dtype)


def decode8(codes: Tensor, scale: Tensor, block: int, shape: Sequence[int], dtype: torch.dtype) -> Any:
    n = prod(shape)
    if not packed(codes, scale, block, n, 1):
        return NotImplemented
    out = torch.empty(tuple(shape), dtype=dtype if dtype in TYPES else torch.float32, device=codes.device)
    kernels().decode8[(pieces(n, SIZE),)](codes, scale, out, n, block, SIZE=SIZE)
    return out.to(dtype)


def decode_scales(codes: Tensor, table: Tensor, absmax: Tensor, offset: Tensor, block: int) -> Any:
    n = codes.numel()
    fine = (
        fits(codes, codes, torch.uint8)
        and table.numel() == 256
        and fits(absmax, codes, torch.float32, pieces(n, block))
        and fits(offset, codes, torch.float32)
    )
    if not fine:
        return NotImplemented
    out = torch.empty(n, device=codes.device)
    grid = (pieces(n, SIZE),)
    kernels().decode_scales[grid](codes, table.to(codes.device), absmax, offset, out, n, block, SIZE=SIZE, **EXACT)
    return out


def quantize_rows(x: Tensor, skip: Tensor | None) -> Any:
    if not (plainly(x) and x.dim() == 2 and x.numel()):
        return NotImplemented
    n, k = x.shape
    if skip is not None and not (fits(skip, x, torch.bool) and skip.numel() == k):
        return NotImplemented
    x = readable(x)
    codes, scale = x.new_empty((n, k), dtype=torch.int8), x.new_empty(n, dtype=torch.float32)
    skipped = skip if skip is None else skip.view(torch.uint8)
    kernels().quantize_rows[(n,)](x, skipped, codes, scale, k, SKIPS=skip is not None, SIZE=power(k, SIZE), **EXACT)
    return codes, scale


def rescale(acc: Tensor, row: Tensor, col: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Any:
    fine = fits(acc, acc, torch.int32) and acc.dim() == 2 and dtype in TYPES
    if not (fine and fits(row, acc, torch.float32) and fits(col, acc, torch.float32)):
        return NotImplemented
    if row.shape != acc.shape[:1] or col.shape != acc.shape[1:]:
        return NotImplemented
    if bias is not None and not (plainly(bias) and bias.device == acc.device and bias.shape == col.shape):
        return NotImplemented
    n, m = acc.shape
    out = torch.empty((n, m), dtype=dtype, device=acc.device)
    wide = bias if bias is None else bias.float().contiguous()
    grid = (pieces(n * m, SIZE),)
    kernels().rescale[grid](acc, row, col, wide, out, n, m, BIASED=bias is not None, SIZE=SIZE, **EXACT)
    return out


def asked(x: Tensor, codes: Tensor, shape: Sequence[int], bias: Tensor | None, *low: Tensor | None) -> bool:
    """Few rows of a dtype that the products take, and nothing to be differentiated."""
    n, k = shape
    learns = any(t is not None and t.requires_grad for t in (x, *low))
    return (
        plainly(x)
        and x.device == codes.device
        and x.dtype in TYPES
        and x.shape[-1] == k
        and 0 < x.numel() // k <= ROWS
        and not (learns and torch.is_grad_enabled())
        and (bias is None or (plainly(bias) and bias.device == x.device and bias.shape == (n,)))
    )


def product(kernel: Any, x: Tensor, weight: tuple[Tensor, ...], block: int, shape: Sequence[int],
            bias: Tensor | None) -> Tensor:  # fmt: skip
    n, k = shape
    x, m = x.contiguous(), x.numel() // k
    y = torch.empty((*x.shape[:-1], n), dtype=x.dtype, device=x.device)
    wide = bias if bias is None else bias.float().contiguous()
    kernel[(pieces(n, COLS),)](x, *weight, wide, y, m, n, k, block, BIASED=bias is not None, ROWS=power(m, ROWS, 16),
                               COLS=COLS, DEEP=DEEP)  # fmt: skip
    return y


def linear4(
    x: Tensor, codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: Sequence[int], bias: Tensor | None,
    A: Tensor | None, B: Tensor | None, c: float, nested: Sequence[Tensor] = (),
) -> Any:  # fmt: skip
    if nested:
        values, most, offset = nested
        absmax = decode_scales(absmax, values, most, offset, NESTED)
        if absmax is NotImplemented:
            return NotImplemented
    if shape[1] % 2 or not packed(codes, absmax, block, prod(shape), 2):  # a row begins at a byte
        return NotImplemented
    if not asked(x, codes, shape, bias, A, B) or table.numel() != 16:
        return NotImplemented
    y = product(kernels().linear4, x, (codes, absmax, table.to(codes.device)), block, shape, bias)
    return y if A is None or B is None else add_low(y, x, A, B, c)


def linear8(x: Tensor, codes: Tensor, scale: Tensor, block: int, shape: Sequence[int], bias: Tensor | None) -> Any:
    if not (packed(codes, scale, block, prod(shape), 1) and asked(x, codes, shape, bias)):
        return NotImplemented
    return product(kernels().linear8, x, (codes, scale), block, shape, bias)


def on_its_device(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device: that of the first tensor, here."""

    def run(*args: Any) -> Any:
        with torch.cuda.device_of(args[0]):
            return fn(*args)

    return run


SERVED = (encode4, decode4, decode8, decode_scales, quantize_rows, rescale, linear4, linear8)
if find_spec("triton") and os.environ.get("FEATHERWEIGHT_NATIVE", "").lower() != "off":
    cuda.update({fn.__name__: on_its_device(fn) for fn in SERVED})
