"""Errors on N(0, 1) and other distributions against the reference figures, each within 1 %, and bits a parameter."""

import math

import pytest
import torch
from torch import Tensor

from featherweight.quant import FP4, NF4, Absmax, Blockwise, Half, Scheme, ZeroPoint

SAMPLES = 1 << 20

# scheme, mean squared error, mean absolute error, bits a parameter; measured on 4.19 M samples, whose noise is 0.1 %
BLOCK_64 = [
    (NF4(), 8.457e-3, 0.0728, 4.5),
    (NF4(double=True), 8.461e-3, 0.0729, 4.127),
    (FP4(), 1.4863e-2, 0.0965, 4.5),
    (FP4(double=True), 1.4867e-2, 0.0966, 4.127),
    (FP4(variant="e2m1"), 1.1156e-2, 0.0802, 4.5),
    (FP4(variant="e3m0"), 0.1881**2, None, 4.5),
    (Blockwise(table="af"), 9.150e-3, 0.0752, 4.5),
    (Blockwise(table="lloyd"), 8.001e-3, 0.0738, 4.5),
    (Blockwise(), 1.1595e-2, 0.0914, 4.5),
    (Blockwise(bits=3, table="nf"), 3.894e-2, None, 3.5),
    (Blockwise(bits=2, table="nf"), 0.3183, None, 2.5),
    (Blockwise(bits=8, table="dynamic"), 9.041e-5, 0.00753, 8.5),
    (Absmax(4, per=64), 1.1595e-2, 0.0914, 4.5),
    (Absmax(4, per=64, full_range=True), 9.019e-3, 0.0804, 4.5),
    (Absmax(8, per=64), 3.520e-5, 0.00503, 8.5),
    (ZeroPoint(4, per=64), 8.295e-3, 0.0782, 4.5 + 4 / 64),
    (ZeroPoint(4, per=64, zero="float"), 8.031e-3, 0.0757, 5.0),
    (ZeroPoint(3, per=64), 3.806e-2, None, 3.5 + 3 / 64),
    (ZeroPoint(2, per=64), 0.2085, None, 2.5 + 2 / 64),
    (ZeroPoint(8, per=64), 2.867e-5, 0.00459, 8.5 + 8 / 64),
    (Half(), 2.76e-6, None, 16.0),
    (Half("fp16"), 4.31e-8, None, 16.0),
    (Absmax(4, per=32, full_range=True), 7.388e-3, None, 5.0),  # GGUF's Q4_0, but for its 16-bit scales
    (Absmax(8, per=32), 2.866e-5, None, 9.0),  # GGUF's Q8_0, likewise
]

BY_BLOCK = {
    32: (7.620e-3, 1.302e-2, 9.416e-3, 6.526e-3, 2.861e-5, 7.702e-5),
    64: (8.457e-3, 1.486e-2, 1.160e-2, 8.295e-3, 3.520e-5, 9.041e-5),
    128: (9.133e-3, 1.654e-2, 1.378e-2, 1.012e-2, 4.184e-5, 1.039e-4),
    256: (9.741e-3, 1.814e-2, 1.597e-2, 1.197e-2, 4.852e-5, 1.172e-4),
    512: (1.032e-2, 1.977e-2),
    1024: (1.090e-2, 2.142e-2),
    2048: (1.148e-2, 2.312e-2),
    4096: (1.211e-2, 2.493e-2),
}


@pytest.fixture(scope="module")
def normal() -> Tensor:
    return torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0))


def error(scheme: Scheme, x: Tensor) -> Tensor:
    return scheme.decode(scheme.encode(x), tuple(x.shape), torch.float32) - x


def relative(scheme: Scheme, x: Tensor) -> float:
    return float(error(scheme, x).norm() / x.norm())


@pytest.mark.parametrize(("scheme", "mse", "mae", "bits"), BLOCK_64, ids=[repr(row[0]) for row in BLOCK_64])
def test_errors_and_bits(normal: Tensor, scheme: Scheme, mse: float, mae: float | None, bits: float) -> None:
    e = error(scheme, normal)
    assert float(e.square().mean()) == pytest.approx(mse, rel=0.01)
    assert mae is None or float(e.abs().mean()) == pytest.approx(mae, rel=0.01)
    assert scheme.size((SAMPLES,)) * 8 / SAMPLES == pytest.approx(bits, abs=1e-3)


def test_signal_to_noise(normal: Tensor) -> None:
    for scheme, sqnr in ((NF4(), 20.73), (FP4(), 18.28), (Absmax(8, per=64), 44.53), (Half(), 55.6)):
        assert -20 * math.log10(relative(scheme, normal)) == pytest.approx(sqnr, abs=0.1)


@pytest.mark.parametrize("block", BY_BLOCK)
def test_errors_by_size_of_block(normal: Tensor, block: int) -> None:
    schemes = (
        NF4(block=block),
        FP4(block=block),
        Blockwise(block=block),
        ZeroPoint(4, per=block),
        Absmax(8, per=block),
        Blockwise(bits=8, table="dynamic", block=block),
    )
    for scheme, mse in zip(schemes, BY_BLOCK[block], strict=False):
        # a sample has few blocks of 4096, and their greatest elements vary
        assert float(error(scheme, normal).square().mean()) == pytest.approx(mse, rel=0.01 if block < 512 else 0.02)


@pytest.mark.parametrize(
    ("block", "plain", "double"), [(32, 5.0, 4.2539), (64, 4.5, 4.1270), (128, 4.25, 4.0635), (256, 4.125, 4.0317)]
)
def test_bits_of_scales(block: int, plain: float, double: float) -> None:
    shape = (4096, 11008)
    n = math.prod(shape)
    assert NF4(block=block).size(shape) * 8 / n == plain
    assert NF4(block=block, double=True).size(shape) * 8 / n == pytest.approx(double, abs=5e-5)


def test_coarser_granularity_costs_accuracy(normal: Tensor) -> None:
    """int8 with a scale per tensor, per row and per block of 64: a uniform grid's error is s²/12."""
    rows = normal.view(-1, 4096)
    assert float(error(Absmax(per="row"), rows).square().mean()) == pytest.approx(7.55e-5, rel=0.02)
    step = float(normal.abs().max()) / 127
    assert float(error(Absmax(per="tensor"), rows).square().mean()) == pytest.approx(step**2 / 12, rel=0.01)
    assert relative(Absmax(per="tensor"), rows) > relative(Absmax(per="row"), rows) > relative(Absmax(per=64), rows)


@pytest.mark.parametrize(
    ("kind", "nf4", "fp4", "int4", "affine"),
    [
        ("normal", 0.0920, 0.1219, 0.1077, 0.0911),
        ("student", 0.105, 0.154, 0.146, 0.112),
        ("laplace", 0.104, 0.151, 0.141, 0.112),
        ("uniform", 0.091, 0.111, 0.070, 0.066),
    ],
)
def test_other_distributions(normal: Tensor, kind: str, nf4: float, fp4: float, int4: float, affine: float) -> None:
    torch.manual_seed(1)
    x = {
        "normal": lambda: normal,
        "student": lambda: torch.distributions.StudentT(5.0).sample((SAMPLES,)),
        "laplace": lambda: torch.distributions.Laplace(0.0, 1.0).sample((SAMPLES,)),
        "uniform": lambda: torch.rand(SAMPLES) * 2 - 1,
    }[kind]()
    found = [relative(s, x) for s in (NF4(), FP4(), Blockwise(), ZeroPoint(4, per=64))]
    assert found == pytest.approx([nf4, fp4, int4, affine], abs=1.5e-3)
    assert (found[0] < found[2]) == (kind != "uniform")  # quantiles pay on normal and heavier tails, not on flat ones
