"""The operations that number formats are built from, each in plain torch: the definition that native code is held to.

    encode4    x -> 4-bit codes, two to a byte, first in the high nibble; absmax of each block of the flat tensor
    decode4    table[code] · absmax of its block

`kernels` may put a faster function of the same meaning into `native`; it answers NotImplemented for what it does not
serve. Ties between two codes go to the lower value.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

native: dict[str, Callable[..., Any]] = {}  # name of an operation -> a function with the same arguments


def call(name: str, plain: Callable[..., Any], *args: Any) -> Any:
    """The native function where it serves these arguments, else the plain one."""
    fast = native.get(name)
    if fast is not None and not torch.compiler.is_compiling():
        result = fast(*args)
        if result is not NotImplemented:
            return result
    return plain(*args)


def encode4(x: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """x of any shape, table (16,) by code -> codes uint8 (ceil(n / 2),), absmax float32 (ceil(n / block),)."""
    return call("encode4", plain_encode4, x, table, block)


def decode4(
    codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """codes (ceil(n / 2),), absmax float32 (ceil(n / block),) -> a tensor of n elements in this shape."""
    return call("decode4", plain_decode4, codes, absmax, table, block, shape, dtype)


def plain_encode4(x: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    flat = x.detach().reshape(-1).float()
    n = flat.numel()
    padded = torch.nn.functional.pad(flat, (0, -n % block)).view(-1, block)
    absmax = padded.abs().amax(1)
    unit = padded / torch.where(absmax == 0, 1.0, absmax)[:, None]
    values, order = table.to(flat.device).sort(stable=True)
    codes = order.to(torch.uint8)[torch.bucketize(unit, (values[1:] + values[:-1]) / 2)].view(-1)[:n]
    zero = int(table.abs().argmin())
    codes = torch.nn.functional.pad(codes, (0, n % 2), value=zero).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], absmax


def plain_decode4(
    codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    n = prod(shape)
    nibbles = torch.stack((codes >> 4, codes & 15), 1).view(-1)[:n]
    scales = absmax.repeat_interleave(block)[:n]
    return (table.to(codes.device)[nibbles.int()] * scales).to(dtype).view(shape)


def quantize_rows(x: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (n, k) -> codes int8 (n, k) in ±127 and scales float32 (n,), x ≈ codes · scale: symmetric, half to even.

    `skip` (k,) bool leaves columns out: their codes are 0 and they do not count for the scale. NaN and inf make their
    row's scale NaN or inf; a row below 1e-36 has codes 0.
    """
    return call("quantize_rows", plain_quantize_rows, x, skip)


def rescale(acc: Tensor, row: Tensor, col: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """acc int32 (n, m), row float32 (n,), col float32 (m,) -> (acc · row) · col + bias in float32, then cast."""
    return call("rescale", plain_rescale, acc, row, col, bias, dtype)


def plain_quantize_rows(x: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    wide = x.detach().float()
    if skip is not None:
        wide = wide.masked_fill(skip, 0.0)
    absmax = wide.abs().amax(1) if wide.shape[1] else wide.new_zeros(len(wide))
    inverse = 127 / absmax
    inverse = torch.where(inverse.isfinite(), inverse, 0.0)  # a row of zeros, or one too small for a float32 inverse
    codes = (wide * inverse[:, None]).round().nan_to_num(0.0).to(torch.int8)
    return codes, absmax / 127


def plain_rescale(acc: Tensor, row: Tensor, col: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    y = acc.float().mul_(row[:, None]).mul_(col)
    return (y if bias is None else y.add_(bias.float())).to(dtype)
