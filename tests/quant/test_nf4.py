"""NF4's table: its constants, where they come from, how its codes are used; and bitsandbytes where that is right."""

import math
from statistics import NormalDist

import pytest
import torch
from support.bitsandbytes import functional
from torch import Tensor

from featherweight.quant import NF4, Blockwise, packing
from featherweight.quant.codebooks import LEVELS
from featherweight.quant.nf4 import NF4_TABLE, normal_float

# fmt: off
PUBLISHED = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


@pytest.fixture(scope="module")
def normal() -> Tensor:
    return torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))


def test_the_table_is_the_published_one_to_the_bit() -> None:
    assert torch.tensor(LEVELS["nf4"]).equal(torch.tensor(PUBLISHED))
    assert LEVELS["nf4"][7] == 0.0


def test_the_table_is_derived_from_normal_quantiles() -> None:
    derived = normal_float(4)
    assert max(abs(a - b) for a, b in zip(derived, NF4_TABLE, strict=True)) < 5e-7
    assert NormalDist().inv_cdf(929 / 960) == pytest.approx(1.848131420, abs=1e-9)  # what the table is divided by


def test_tables_of_other_widths() -> None:
    assert normal_float(2) == pytest.approx((-1, 0, 0.435818, 1), abs=1e-6)
    nf3 = (-1, -0.535023, -0.246931, 0, 0.183337, 0.381994, 0.622986, 1)
    assert normal_float(3) == pytest.approx(nf3, abs=1e-6)
    for bits in range(2, 9):
        levels = LEVELS[f"nf{bits}"]
        assert len(set(levels)) == 2**bits
        assert list(levels) == sorted(levels)
        assert {-1.0, 0.0, 1.0} <= set(levels)


def test_equation_4_of_the_paper_is_not_the_table() -> None:
    """q_i = ½(Q(i/(2^k+1)) + Q((i+1)/(2^k+1))): i = 0 asks for Q(0) = -inf, and no q_i of the others is 0."""
    inverse = NormalDist().inv_cdf
    with pytest.raises(ValueError, match="0"):
        inverse(0 / 17)
    q = [(inverse(i / 17) + inverse((i + 1) / 17)) / 2 for i in range(1, 16)]
    assert min(map(abs, q)) < 1e-12  # by symmetry of the fifteen that are left,
    assert max(q) == pytest.approx(-min(q))  # of which as many are negative as positive: not NF4's 7 and 8
    assert sum(v > 0 for v in NF4_TABLE) == 8
    assert sum(v < 0 for v in NF4_TABLE) == 7


def test_a_symmetric_table_of_16_has_no_zero() -> None:
    """Quantiles at the middles of 16 equal shares of N(0, 1): the two nearest 0 are not 0."""
    q = [NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)]
    assert min(map(abs, q)) == pytest.approx(0.0784, abs=1e-4)


def test_codes_are_used_nearly_equally_but_not_quite(normal: Tensor) -> None:
    codes = packing.unpack(NF4().encode(normal)["codes"], 4, normal.numel())
    share = codes.int().bincount(minlength=16) / codes.numel()
    entropy = float(-(share * share.log2()).sum())
    assert entropy == pytest.approx(3.884, abs=2e-3)
    assert float(share[0]) == pytest.approx(0.0185, abs=5e-4)
    assert float(share[15]) == pytest.approx(0.0173, abs=5e-4)
    assert float(share.max()) == pytest.approx(0.0924, abs=1e-3)


def test_integers_leave_codes_hardly_used(normal: Tensor) -> None:
    """One outlier in a tensor: int4 with one scale uses three codes of sixteen, NF4 in blocks still all."""
    spoiled = normal[:65536].clone()
    spoiled[5] = 30.0
    wide = packing.unpack(Blockwise(block=65536).encode(spoiled)["codes"], 4, 65536).int().bincount(minlength=16)
    fine = packing.unpack(NF4().encode(spoiled)["codes"], 4, 65536).int().bincount(minlength=16)
    assert int((wide > 65).sum()) == 3  # one in a thousand
    assert int((fine > 65).sum()) == 16


def test_a_table_with_less_error_exists(normal: Tensor) -> None:
    def mse(scheme: NF4 | Blockwise) -> float:
        return float((scheme.decode(scheme.encode(normal), (1 << 20,), torch.float32) - normal).square().mean())

    assert mse(Blockwise(table="lloyd")) < 0.955 * mse(NF4())


def test_absmax_of_64_normals(normal: Tensor) -> None:
    absmax = NF4().encode(normal)["absmax"]
    assert float(absmax.mean()) == pytest.approx(2.598, rel=0.01)
    assert float(absmax.std()) == pytest.approx(0.418, rel=0.03)


def test_the_bound_is_half_the_widest_gap() -> None:
    x = torch.zeros(64)
    x[0] = 2.0
    assert float(NF4().bound(x).max()) == pytest.approx(0.1519036 * 2, rel=1e-5)


def test_a_vector_by_hand() -> None:
    """(-2, 1, 0.2, 0, 1.5) over absmax 2: -1, .5, .1, 0, .75 are nearest codes 0, 12 (.4407), 8 (.0796), 7, 14."""
    packed = NF4().encode(torch.tensor([-2.0, 1.0, 0.2, 0.0, 1.5]))
    assert packed["codes"].tolist() == [0x0C, 0x87, 0xE7]
    assert packed["absmax"].tolist() == [2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "block"), [((128, 64), 64), ((33, 256), 128), ((7, 1024), 1024), ((64, 32), 32)])
def test_bitsandbytes_gives_the_same_bytes(dtype: torch.dtype, shape: tuple[int, int], block: int) -> None:
    """Where its CPU kernels are right: the width a multiple of the block."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    codes, state = functional().quantize_4bit(W, blocksize=block, quant_type="nf4")
    packed = NF4(block=block).encode(W)
    assert packed["codes"].equal(codes.view(-1))
    assert packed["absmax"].equal(state.absmax)
    theirs = functional().dequantize_4bit(codes, state)
    assert NF4(block=block).decode(packed, shape, dtype).equal(theirs)


def test_bits_a_parameter_of_a_7b_model() -> None:
    shape = (4096, 4096)
    assert NF4().size(shape) == 4096 * 4096 // 2 + 4096 * 4096 // 64 * 4
    blocks = 4096 * 4096 // 64
    assert NF4(double=True).size(shape) == 4096 * 4096 // 2 + blocks + 4 * math.ceil(blocks / 256) + 4
