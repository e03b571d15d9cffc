"""Triton kernels of the operations of `quant.ops`: what one program computes. `triton_ops` launches them.

    byte b of a packed tensor holds the elements 2b (high nibble) and 2b + 1      i // block is an element's scale

Products are float32. Quotients are rounded to nearest, and what multiplies and then adds is launched without fused
multiply-adds, so that codes and scales are to the bit those of the plain definitions.
"""

import triton
import triton.language as tl


@triton.jit
def largest(x, absmax, n, block, blocks, MANY: tl.constexpr, SIZE: tl.constexpr):
    """absmax of each block, NaN where the block has one. A program: MANY blocks."""
    one = tl.program_id(0) * MANY + tl.arange(0, MANY)
    most, bad = tl.zeros((MANY,), tl.float32), tl.zeros((MANY,), tl.int32)
    for first in range(0, block, SIZE):
        within = first + tl.arange(0, SIZE)
        at = one.to(tl.int64)[:, None] * block + within[None, :]
        v = tl.load(x + at, mask=(within[None, :] < block) & (at < n), other=0.0).to(tl.float32)
        bad = tl.maximum(bad, tl.max((v != v).to(tl.int32), 1))
        most = tl.maximum(most, tl.max(tl.where(v == v, tl.abs(v), 0.0), 1))
    tl.store(absmax + one, tl.where(bad > 0, float("nan"), most), mask=one < blocks)


@triton.jit
def encode4(x, absmax, middles, order, zero, codes, n, block, SIZE: tl.constexpr):
    """Two codes to a byte: order[middles between values that lie below x / absmax]; ties go down, NaN to the top."""
    byte = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    packed = tl.zeros((SIZE,), tl.int32)
    for part in tl.static_range(2):
        at = 2 * byte + part
        inside = at < n
        scale = tl.load(absmax + at // block, mask=inside, other=1.0)
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        unit = tl.div_rn(v, tl.where(scale == 0, 1.0, scale))
        above = tl.zeros((SIZE,), tl.int32)
        for i in tl.static_range(15):
            above += tl.where(unit <= tl.load(middles + i), 0, 1)
        code = tl.load(order + above).to(tl.int32)
        packed = packed * 16 + tl.where(inside, code, tl.load(zero).to(tl.int32))
    tl.store(codes + byte, packed.to(tl.uint8), mask=2 * byte < n)


@triton.jit
def decode4(codes, absmax, table, out, n, block, SIZE: tl.constexpr):
    """table[code] · absmax of its block."""
    byte = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    both = tl.load(codes + byte, mask=2 * byte < n, other=0).to(tl.int32)
    code = tl.interleave(both >> 4, both & 15)
    at = tl.program_id(0).to(tl.int64) * 2 * SIZE + tl.arange(0, 2 * SIZE)
    inside = at < n
    w = tl.load(table + code) * tl.load(absmax + at // block, mask=inside, other=0.0)
    tl.store(out + at, w.to(out.dtype.element_ty), mask=inside)


@triton.jit
def decode8(codes, scale, out, n, block, SIZE: tl.constexpr):
    """code · scale of its block."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < n
    w = tl.load(codes + at, mask=inside, other=0).to(tl.float32)
    w = w * tl.load(scale + at // block, mask=inside, other=0.0)
    tl.store(out + at, w.to(out.dtype.element_ty), mask=inside)


@triton.jit
def decode_scales(codes, table, absmax, offset, out, n, block, SIZE: tl.constexpr):
    """table[code] · absmax of its block + offset."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < n
    value = tl.load(table + tl.load(codes + at, mask=inside, other=0).to(tl.int32))
    value = value * tl.load(absmax + at // block, mask=inside, other=0.0) + tl.load(offset)
    tl.store(out + at, value, mask=inside)


@triton.jit
def quantize_rows(x, skip, codes, scale, k, SKIPS: tl.constexpr, SIZE: tl.constexpr):
    """int8 codes of a row and its scale, absmax / 127; half to even by adding 1.5 · 2²³. A program: one row."""
    start = tl.program_id(0).to(tl.int64) * k
    most, bad = 0.0, 0
    for first in range(0, k, SIZE):
        column = first + tl.arange(0, SIZE)
        inside = column < k
        if SKIPS:
            inside = inside & (tl.load(skip + column, mask=inside, other=1) == 0)
        v = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
        bad = tl.maximum(bad, tl.max((v != v).to(tl.int32)))
        most = tl.maximum(most, tl.max(tl.where(v == v, tl.abs(v), 0.0)))
    most = tl.where(bad > 0, float("nan"), most)
    inverse = tl.div_rn(127.0, most)
    inverse = tl.where(tl.abs(inverse) < float("inf"), inverse, 0.0)
    for first in range(0, k, SIZE):
        column = first + tl.arange(0, SIZE)
        inside = column < k
        kept = inside
        if SKIPS:
            kept = inside & (tl.load(skip + column, mask=inside, other=1) == 0)
        v = tl.load(x + start + column, mask=kept, other=0.0).to(tl.float32) * inverse
        v = (v + 12582912.0) - 12582912.0
        tl.store(codes + start + column, tl.where(v == v, v, 0.0).to(tl.int8), mask=inside)
    tl.store(scale + tl.program_id(0), tl.div_rn(most, 127.0))


@triton.jit
def rescale(acc, row, col, bias, out, n, m, BIASED: tl.constexpr, SIZE: tl.constexpr):
    """(acc · row) · col + bias."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = at < n * m
    y = tl.load(acc + at, mask=inside, other=0).to(tl.float32) * tl.load(row + at // m, mask=inside, other=0.0)
    y = y * tl.load(col + at % m, mask=inside, other=0.0)
    if BIASED:
        y = y + tl.load(bias + at % m, mask=inside, other=0.0)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def linear4(x, codes, absmax, table, bias, y, m, n, k, block, BIASED: tl.constexpr,
            ROWS: tl.constexpr, COLS: tl.constexpr, DEEP: tl.constexpr):  # fmt: skip
    """x Ŵᵀ + b of few rows. A program: COLS rows of Ŵ, whose even and odd elements are two products."""
    row, col = tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for first in range(0, k // 2, DEEP):
        pair = first + tl.arange(0, DEEP)
        at = col.to(tl.int64)[:, None] * (k // 2) + pair[None, :]
        held = (col[:, None] < n) & (pair[None, :] < k // 2)
        asked = (row[:, None] < m) & (pair[None, :] < k // 2)
        byte = tl.load(codes + at, mask=held, other=0).to(tl.int32)
        for part in tl.static_range(2):
            code = byte >> 4 if part == 0 else byte & 15
            w = tl.load(table + code) * tl.load(absmax + (2 * at + part) // block, mask=held, other=0.0)
            v = tl.load(x + row.to(tl.int64)[:, None] * k + 2 * pair[None, :] + part, mask=asked, other=0.0)
            acc = tl.dot(v, tl.trans(w.to(v.dtype)), acc, input_precision="ieee")
    if BIASED:
        acc += tl.load(bias + col, mask=col < n, other=0.0)[None, :]
    inside = (row[:, None] < m) & (col[None, :] < n)
    tl.store(y + row.to(tl.int64)[:, None] * n + col[None, :], acc.to(y.dtype.element_ty), mask=inside)


@triton.jit
def linear8(x, codes, scale, bias, y, m, n, k, block, BIASED: tl.constexpr,
            ROWS: tl.constexpr, COLS: tl.constexpr, DEEP: tl.constexpr):  # fmt: skip
    """x Ŵᵀ + b of few rows over 8-bit codes."""
    row, col = tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for first in range(0, k, DEEP):
        deep = first + tl.arange(0, DEEP)
        at = col.to(tl.int64)[:, None] * k + deep[None, :]
        held = (col[:, None] < n) & (deep[None, :] < k)
        w = tl.load(codes + at, mask=held, other=0).to(tl.float32)
        w = w * tl.load(scale + at // block, mask=held, other=0.0)
        asked = (row[:, None] < m) & (deep[None, :] < k)
        v = tl.load(x + row.to(tl.int64)[:, None] * k + deep[None, :], mask=asked, other=0.0)
        acc = tl.dot(v, tl.trans(w.to(v.dtype)), acc, input_precision="ieee")
    if BIASED:
        acc += tl.load(bias + col, mask=col < n, other=0.0)[None, :]
    inside = (row[:, None] < m) & (col[None, :] < n)
    tl.store(y + row.to(tl.int64)[:, None] * n + col[None, :], acc.to(y.dtype.element_ty), mask=inside)
