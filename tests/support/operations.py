"""What the operations of `quant.ops` are held to on every device: their plain definitions, on shapes others miss."""

from typing import Any

import torch

from featherweight.quant import ops

LAW = (1, 2, 3, 32, 48, 63, 80, 96, 100, 112, 160, 1200)  # widths at which other libraries are wrong, and some more
# fmt: off
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
HALF = torch.tensor([0, 0.00520833, 0.66666669, 1, 0.33333334, 0.5, 0.16666667, 0.25])
# fmt: on
TABLES = {"nf4": NF4, "fp4": torch.cat([HALF, -HALF])}  # FP4 is unsorted and has two zeros


def weights(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit, except that any NaN is a NaN."""
    assert a.dtype is b.dtype
    assert a.shape == b.shape
    if not a.is_floating_point():
        return torch.equal(a, b)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num().view(bits), b.nan_to_num().view(bits))


def agrees(name: str, fast: Any, *args: Any) -> Any:
    """A faster function serves these arguments and gives the plain definition's bits; what it gives."""
    found, plain = fast(*args), getattr(ops, f"plain_{name}")(*args)
    assert found is not NotImplemented
    pairs = zip(found, plain, strict=True) if isinstance(found, tuple) else [(found, plain)]
    assert all(same(a, b) for a, b in pairs), (name, [getattr(a, "shape", a) for a in args])
    return found


def calls() -> dict[str, tuple[Any, ...]]:
    """One call of each operation."""
    W = weights(6, 32)
    codes, absmax = ops.plain_encode4(W, NF4, 16)
    q, scale = ops.plain_quantize_rows(W, None)
    low, half = (weights(4, 32), weights(6, 4), 0.5), torch.bfloat16
    coded = torch.randint(0, 256, (12,), dtype=torch.uint8)
    nested = weights(256), weights(1), weights(1)
    return {
        "encode4": (W, NF4, 16),
        "decode4": (codes, absmax, NF4, 16, (6, 32), torch.bfloat16),
        "decode8": (q, scale, 32, (6, 32), torch.bfloat16),
        "decode_scales": (codes, weights(256), weights(1), weights(1), 256),
        "linear4": (weights(2, 3, 32), codes, coded, NF4, 16, (6, 32), weights(6), *low, nested),
        "linear8": (weights(2, 3, 32), q, scale, 32, (6, 32), weights(6)),
        "linear": (weights(2, 3, 32, dtype=half), weights(6, 32, dtype=half), weights(6, dtype=half), *low),
        "quantize_rows": (W, torch.arange(32) % 2 == 0),
        "rescale": (q.int(), scale, weights(32), weights(32), torch.bfloat16),
    }
