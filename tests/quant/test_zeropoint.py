"""Zero-point: the lecture's example, 0 exact, both ends of the grid used, the float variant."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.core.errors import InputError
from featherweight.quant import ZeroPoint, packing


@pytest.mark.parametrize("per", ["tensor", "row", 64])
def test_the_worked_example(per: int | str) -> None:
    packed = ZeroPoint(per=per).encode(torch.tensor([-5.2, 4.3, 1.1, 0.0]))
    assert packed["scales"].tolist() == [pytest.approx(0.0372549, abs=1e-7)]
    assert packed["zeros"].tolist() == [12]
    assert packed["codes"].tolist() == [-128, 127, 42, 12]
    decoded = ZeroPoint(per=per).decode(packed, (4,), torch.float32)
    assert decoded.tolist() == pytest.approx([-5.2157, 4.2843, 1.1176, 0.0], abs=5e-5)


def test_a_range_on_one_side_of_zero_is_widened_to_it() -> None:
    packed = ZeroPoint(4).encode(torch.tensor([3.0, 15.0, 9.0]))
    assert packed["scales"].tolist() == [1.0]
    assert packing.unpack(packed["zeros"], 4, 1).tolist() == [0]
    assert packing.unpack(packed["codes"], 4, 3).tolist() == [3, 15, 9]
    negative = ZeroPoint(4).encode(torch.tensor([-3.0, -15.0]))
    assert packing.unpack(negative["zeros"], 4, 1).tolist() == [15]
    assert packing.unpack(negative["codes"], 4, 2).tolist() == [12, 0]


def test_the_float_zero_widens_nothing() -> None:
    packed = ZeroPoint(4, zero="float").encode(torch.tensor([100.0, 101.5, 100.75]))
    assert packed["scales"].tolist() == [pytest.approx(0.1)]
    assert packed["minimum"].tolist() == [100.0]
    assert packing.unpack(packed["codes"], 4, 3).tolist() == [0, 15, 8]  # 7.5 goes to even


@settings(deadline=None, derandomize=True, database=None)
@given(low=st.floats(-100, 0, width=32), high=st.floats(0, 100, width=32), bits=st.integers(2, 8), even=st.booleans())
def test_the_least_and_the_greatest_have_the_outermost_codes(low: float, high: float, bits: int, even: bool) -> None:
    """Or the range that was decoded would be smaller, its codes others. Ranges symmetric about 0 are the hard case."""
    x = torch.tensor([low, -low if even else high])
    if float(x.abs().max()) < 1e-20:
        return
    packed, scheme = ZeroPoint(bits).encode(x), ZeroPoint(bits)
    codes = packed["codes"].int() if bits == 8 else packing.unpack(packed["codes"], bits, 2).int()
    widest = (codes.max() if x.max() > 0 else 2**bits - 1 + scheme.low) - (codes.min() if x.min() < 0 else scheme.low)
    assert int(widest) == 2**bits - 1


def test_opposite_ends_of_float32() -> None:
    x = torch.tensor([-3e38, 3e38, 0.0])
    decoded = ZeroPoint().decode(ZeroPoint().encode(x), (3,), torch.float32)
    assert decoded[2] == 0
    torch.testing.assert_close(decoded, x, rtol=0.01, atol=0)


def test_zero_points_are_packed_too() -> None:
    W = torch.randn(30, 64)
    assert ZeroPoint(4, per=64).encode(W)["zeros"].nbytes == 15
    assert ZeroPoint(3, per=64).encode(W)["zeros"].nbytes == 12
    assert ZeroPoint(4, per=64).size((64, 64)) * 8 / 4096 == 4.5625


def test_integer_products_with_zero_points() -> None:
    """Σ (q_x - z_x)(q_w - z_w) = Σ q_x q_w - z_w Σ q_x - z_x Σ q_w + K z_x z_w, all in integers."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(300, generator=generator), torch.rand(300, generator=generator)
    qx, qw = (ZeroPoint(per="tensor").encode(v) for v in (x, w))
    a, b, zx, zw = qx["codes"].long(), qw["codes"].long(), qx["zeros"].long(), qw["zeros"].long()
    expanded = (a * b).sum() - zw * a.sum() - zx * b.sum() + 300 * zx * zw
    decoded = [ZeroPoint(per="tensor").decode(p, (300,), torch.float32).double() for p in (qx, qw)]
    scale = (qx["scales"] * qw["scales"]).double()
    torch.testing.assert_close(expanded * scale, (decoded[0] * decoded[1]).sum()[None], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"zero": "floating"}, "ZeroPoint.zero.*did you mean 'float'"),
        ({"bits": 16}, "from 2 to 8"),
        ({"per": 2.5}, "ZeroPoint.per"),
        ({"clip": "mean"}, "ZeroPoint.clip"),
    ],
    ids=str,
)
def test_wrong_fields(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ZeroPoint(**fields)  # type: ignore[arg-type]
