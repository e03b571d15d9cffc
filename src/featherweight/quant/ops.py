"""The operations that number formats are built from, each in plain torch: the definition that native code is held to.

    encode4        x -> 4-bit codes, two to a byte, first in the high nibble; absmax of each block of the flat tensor
    decode4        table[code] · absmax of its block                    decode8    code · scale of its block
    decode_scales  table[code] · absmax of its block + offset, the scales of a doubly quantized tensor
    linear4        x Ŵᵀ + b + c x Aᵀ Bᵀ over decode4's Ŵ                linear8    x Ŵᵀ + b over decode8's
    linear         x Wᵀ + b + c x Aᵀ Bᵀ over W as it is, as the head of a quantized model is
    quantize_rows  x -> int8 codes and a scale for each row             rescale    int32 sums · row · column + bias

Products are taken in float32, then cast. Ties between two codes go to the lower value. `kernels` puts faster functions
of the same meaning into `native` and `cuda`; one answers NotImplemented for what it does not serve. Each is a torch
operation too, `torch.ops.featherweight.<name>`, which stands in graphs and in what dispatch modes see; an eager call
goes past the dispatcher.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from featherweight.quant.scratch import scratch

FEW = 8  # rows of x, as in generation, that a low-rank term is added to in the dtype of its factors
NESTED = 256  # scales that share a scale, where scales are coded
native: dict[str, Callable[..., Any]] = {}  # name of an operation -> a function with the same arguments, on a CPU
cuda: dict[str, Callable[..., Any]] = {}  # the same where the first tensor is on a GPU


def direct(name: str, plain: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The native function where it serves these arguments, else the plain one."""
    fast = (cuda if args[0].is_cuda else native).get(name)
    result = NotImplemented if fast is None else fast(*args)
    return plain(*args) if result is NotImplemented else result


def eager() -> bool:
    """Whether what is called now runs as it is: no compiler, mode or transform of functions sees it."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def unwatched(x: Tensor) -> bool:
    """Numbers on a CPU of which values alone are asked: no gradient, no cast, nobody who sees how they come about."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and eager()
    )


def operation(
    fake: Callable[..., Any], flops: Callable[..., int] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a plain definition `plain_<name>`: registers the torch operation, with what it counts for in
    floating-point operations, and gives what callers call."""

    def make(plain: Callable[..., Any]) -> Callable[..., Any]:
        name = plain.__name__.removeprefix("plain_")
        op = torch.library.custom_op(
            f"featherweight::{name}", wraps(plain)(lambda *args: direct(name, plain, args)), mutates_args=()
        )
        op.register_fake(fake)
        if flops is not None:
            register_flop_formula(getattr(torch.ops.featherweight, name), get_raw=True)(flops)

        def call(*args: Any) -> Any:
            if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
                return op(*args)
            if torch._C._functorch.peek_interpreter_stack() is not None:  # vmap and grad see torch's own operations
                return plain(*args)
            return direct(name, plain, args)

        return call

    return make


def fake_decoded(codes: Tensor, *args: Any) -> Tensor:
    shape, dtype = args[-2:]
    return codes.new_empty(shape, dtype=dtype)


def fake_linear4(x: Tensor, codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: Any, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], shape[0])


def fake_linear8(x: Tensor, codes: Tensor, scale: Tensor, block: int, shape: Any, bias: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], shape[0])


def fake_linear(x: Tensor, W: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], W.shape[0])


def flops(x: Tensor, shape: Sequence[int], A: Tensor | None = None) -> int:
    """Of a product with W (out, in), and of a low rank beside it."""
    n, k = shape
    return 2 * (x.numel() // k) * (n * k + (0 if A is None else len(A) * (n + k)))


def fake_encode4(x: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    n = x.numel()
    return (
        x.new_empty((n + 1) // 2, dtype=torch.uint8),
        x.new_empty((n + block - 1) // block, dtype=torch.float32),
    )


def fake_quantize_rows(x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)


def plain_encode4(x: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    flat = x.detach().reshape(-1).float()
    n = flat.numel()
    padded = F.pad(flat, (0, -n % block)).view(-1, block)
    absmax = padded.abs().amax(1)
    unit = padded / torch.where(absmax == 0, 1.0, absmax)[:, None]
    values, order = table.to(flat.device).sort(stable=True)
    codes = order.to(torch.uint8)[torch.bucketize(unit, (values[1:] + values[:-1]) / 2)].view(-1)[:n]
    zero = table.abs().argmin().to(torch.uint8).to(flat.device)
    codes = (torch.cat((codes, zero[None])) if n % 2 else codes).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], absmax


def plain_decode4(
    codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    n = prod(shape)
    nibbles = torch.stack((codes >> 4, codes & 15), 1).view(-1)[:n]
    scales = absmax.repeat_interleave(block)[:n]
    return (table.to(codes.device)[nibbles.int()] * scales).to(dtype).view(shape)


def plain_decode8(codes: Tensor, scale: Tensor, block: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    flat = codes.reshape(-1).float()
    return flat.mul_(scale.repeat_interleave(block)[: flat.numel()]).to(dtype).view(shape)


def plain_decode_scales(codes: Tensor, table: Tensor, absmax: Tensor, offset: Tensor, block: int) -> Tensor:
    spread = absmax.repeat_interleave(block)[: codes.numel()]
    return (table.to(codes.device)[codes.reshape(-1).int()] * spread).add_(offset)


def plain_linear4(
    x: Tensor, codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: Sequence[int], bias: Tensor | None,
    A: Tensor | None, B: Tensor | None, c: float, nested: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    if nested:
        values, most, offset = nested
        absmax = decode_scales(absmax, values, most, offset, NESTED)
    with scratch():
        y = F.linear(x, decode4(codes, absmax, table, block, tuple(shape), x.dtype), bias)
    return y if A is None or B is None else add_low(y, x, A, B, c)


def add_low(y: Tensor, x: Tensor, A: Tensor, B: Tensor, c: float) -> Tensor:
    """y + c x Aᵀ Bᵀ without gradients, in place; few rows in the dtype of A and B, to cast which would cost more."""
    if x.numel() <= FEW * x.shape[-1]:
        return y.add_(F.linear(F.linear(x.to(A.dtype), A), B), alpha=c)
    h = x.reshape(-1, x.shape[-1]).mm(A.to(x.dtype).t())
    y.view(-1, y.shape[-1]).addmm_(h, B.to(x.dtype).t(), alpha=c)
    return y


def plain_linear(x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor | None, B: Tensor | None, c: float) -> Tensor:
    y = F.linear(x, W, bias)
    return y if A is None or B is None else add_low(y, x, A, B, c)


def plain_linear8(
    x: Tensor, codes: Tensor, scale: Tensor, block: int, shape: Sequence[int], bias: Tensor | None
) -> Tensor:
    with scratch():
        return F.linear(x, decode8(codes, scale, block, tuple(shape), x.dtype), bias)


def plain_quantize_rows(x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = x.detach().float()
    if skip is not None:
        wide = wide.masked_fill(skip, 0.0)
    absmax = wide.abs().amax(1) if wide.shape[1] else wide.new_zeros(len(wide))
    inverse = torch.full_like(absmax, 127) / absmax  # `127 / absmax` would be two roundings
    inverse = torch.where(inverse.isfinite(), inverse, 0.0)  # a row of zeros, or one too small for a float32 inverse
    codes = (wide * inverse[:, None]).round().nan_to_num(0.0).to(torch.int8)
    return codes, absmax / 127


def plain_rescale(acc: Tensor, row: Tensor, col: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    y = acc.float().mul_(row[:, None]).mul_(col)
    return (y if bias is None else y.add_(bias.float())).to(dtype)


_encode4 = operation(fake_encode4)(plain_encode4)
_decode4 = operation(fake_decoded)(plain_decode4)
_decode8 = operation(fake_decoded)(plain_decode8)
_decode_scales = operation(lambda codes, table, *_: table.new_empty(codes.numel()))(plain_decode_scales)
_linear4 = operation(fake_linear4, lambda *args, **_: flops(args[0], args[5], args[7]))(plain_linear4)
_linear8 = operation(fake_linear8, lambda *args, **_: flops(args[0], args[4]))(plain_linear8)
_linear = operation(fake_linear, lambda *args, **_: flops(args[0], args[1].shape, args[3]))(plain_linear)
_quantize_rows = operation(fake_quantize_rows)(plain_quantize_rows)
_rescale = operation(lambda acc, *args: acc.new_empty(acc.shape, dtype=args[-1]))(plain_rescale)


def encode4(x: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """x of any shape, table (16,) by code -> codes uint8 (ceil(n / 2),), absmax float32 (ceil(n / block),).

    A NaN makes its whole block NaN; an odd tail is padded with the code of the value nearest to zero.
    """
    return _encode4(x.detach(), table, block)


def decode4(
    codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """codes (ceil(n / 2),), absmax float32 (ceil(n / block),) -> a tensor of n elements in this shape."""
    return _decode4(codes, absmax, table, block, shape, dtype)


def decode8(codes: Tensor, scale: Tensor, block: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """codes int8 of n elements, scale float32 (ceil(n / block),) -> a tensor of n elements in this shape."""
    return _decode8(codes, scale, block, shape, dtype)


def decode_scales(codes: Tensor, table: Tensor, absmax: Tensor, offset: Tensor, block: int) -> Tensor:
    """codes uint8 (n,), table (256,), absmax float32 (ceil(n / block),), offset of one element -> float32 (n,)."""
    return _decode_scales(codes, table, absmax, offset, block)


def linear4(
    x: Tensor, codes: Tensor, absmax: Tensor, table: Tensor, block: int, shape: tuple[int, int], bias: Tensor | None,
    A: Tensor | None = None, B: Tensor | None = None, c: float = 0.0, nested: tuple[Tensor, ...] = (),
) -> Tensor:  # fmt: skip
    """x (..., in) through decode4's Ŵ (out, in) in x's dtype, without gradients: what a scheme's `product` may be; plus
    c x Aᵀ Bᵀ for A (r, in) and B (out, r). Where `absmax` is codes of scales, `nested` is (table, absmax, offset), as
    `decode_scales` takes them in blocks of NESTED.
    """
    return _linear4(x, codes, absmax, table, block, shape, bias, A, B, c, nested)


def linear8(x: Tensor, codes: Tensor, scale: Tensor, block: int, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
    """x (..., in) through decode8's Ŵ (out, in) in x's dtype, without gradients."""
    return _linear8(x, codes, scale, block, shape, bias)


def linear(
    x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor | None = None, B: Tensor | None = None, c: float = 0.0
) -> Tensor:
    """x (..., in) through W (out, in), plus c x Aᵀ Bᵀ, in x's dtype and without gradients."""
    return _linear(x, W, bias, A, B, c)


def quantize_rows(x: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (n, k) -> codes int8 (n, k) in ±127 and scales float32 (n,), x ≈ codes · scale: symmetric, half to even.

    `skip` (k,) bool leaves columns out: their codes are 0 and they do not count for the scale. NaN and inf make their
    row's scale NaN or inf; a row below 1e-36 has codes 0.
    """
    return _quantize_rows(x.detach(), skip)


def rescale(acc: Tensor, row: Tensor, col: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """acc int32 (n, m), row float32 (n,), col float32 (m,) -> (acc · row) · col + bias in float32, then cast."""
    return _rescale(acc, row, col, bias, dtype)
