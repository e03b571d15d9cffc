"""Absmax: the lecture's example, its grid and rounding, real bytes for every width."""

import pytest
import torch

from featherweight.core.errors import InputError
from featherweight.quant import Absmax, Blockwise, packing

EXAMPLE = torch.tensor([-5.2, 4.3, 1.1, 0.0])


def codes_of(scheme: Absmax, x: torch.Tensor) -> list[int]:
    codes = scheme.encode(x)["codes"]
    return (codes if scheme.bits == 8 else packing.unpack(codes, scheme.bits, x.numel()).int() + scheme.low).tolist()


@pytest.mark.parametrize("per", ["tensor", "row", 64])
def test_the_worked_example(per: int | str) -> None:
    packed = Absmax(per=per).encode(EXAMPLE)
    assert packed["codes"].tolist() == [-127, 105, 27, 0]
    assert packed["scales"].tolist() == [pytest.approx(5.2 / 127)]
    decoded = Absmax(per=per).decode(packed, (4,), torch.float32)
    assert decoded.tolist() == pytest.approx([-5.2, 105 * 5.2 / 127, 27 * 5.2 / 127, 0])


def test_c_x_rounded_is_the_same() -> None:
    """X_i8 = round(c X), X ≈ X_i8 / c with c = 127 / absmax(X): the other notation."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    c = 127 / x.abs().max()
    packed = Absmax(per="tensor").encode(x)
    assert packed["codes"].equal((c * x).round().to(torch.int8))
    torch.testing.assert_close(Absmax(per="tensor").decode(packed, (1000,), torch.float32), (c * x).round() / c)


def test_ends_go_to_ends_and_zero_to_zero() -> None:
    for bits in range(2, 9):
        top = 2 ** (bits - 1) - 1
        assert codes_of(Absmax(bits, per="tensor"), torch.tensor([-3.0, 3.0, 0.0])) == [-top, top, 0]


def test_rounding_goes_half_to_even() -> None:
    assert codes_of(Absmax(4), torch.tensor([7.0, 0.5, 1.5, 2.5, -0.5, -1.5])) == [7, 0, 2, 2, 0, -2]
    assert codes_of(Absmax(8), torch.tensor([127.0, 0.5, 1.5, -2.5])) == [127, 0, 2, -2]


def test_full_range_uses_the_lowest_code() -> None:
    """GGUF's Q4_0 rule: d = m / -8 for the signed element of largest magnitude."""
    scheme = Absmax(4, full_range=True)
    x = torch.tensor([4.0, -3.9, 1.0, 0.0])
    assert scheme.encode(x)["scales"].tolist() == [-0.5]
    assert codes_of(scheme, x) == [-8, 7, -2, 0]  # -3.9 / -0.5 = 7.8 is beyond the last code, 7
    assert scheme.decode(scheme.encode(x), (4,), torch.float32).tolist() == [4.0, -3.5, 1.0, 0.0]
    assert codes_of(scheme, -x) == [-8, 7, -2, 0]


def test_error_is_at_most_absmax_over_254() -> None:
    x = torch.randn(64, 100, generator=torch.Generator().manual_seed(1))
    error = (Absmax().decode(Absmax().encode(x), (64, 100), torch.float32) - x).abs()
    assert (error <= x.abs().amax(1, keepdim=True) / 254 * (1 + 1e-5)).all()
    assert float((error / x.abs().amax(1, keepdim=True)).max()) > 0.99 / 254  # and the bound is met


@pytest.mark.parametrize("bits", range(2, 9))
def test_bytes_are_real(bits: int) -> None:
    shape = (33, 31)
    packed = Absmax(bits).encode(torch.randn(shape))
    assert packed["codes"].nbytes == -(-33 * 31 * bits // 8)
    assert packed["codes"].dtype == (torch.int8 if bits == 8 else torch.uint8)


def test_a_scale_for_each_row() -> None:
    W = torch.tensor([[127.0, 1.0], [1.27, 0.01]])
    assert Absmax().encode(W)["scales"].tolist() == pytest.approx([1.0, 0.01])
    stack = torch.randn(3, 4, 10)
    assert Absmax().encode(stack)["scales"].shape == (12,)  # a row is a vector along the last dimension


def test_an_outlier_spoils_its_own_row_only() -> None:
    W = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    W[3, 5] = 1000.0
    lost = {}
    for per in ("tensor", "row"):
        error = Absmax(per=per).decode(Absmax(per=per).encode(W), (8, 64), torch.float32) - W
        lost[per] = error.norm(dim=1)
    assert (lost["row"] < lost["tensor"] / 50).tolist() == [True, True, True, False, True, True, True, True]


def test_blocks_of_integers_and_the_integer_table_are_one_format() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    for bits in range(2, 8):
        one, other = Absmax(bits, per=64), Blockwise(bits=bits)
        decoded = one.decode(one.encode(x), (1000,), torch.float32)
        torch.testing.assert_close(decoded, other.decode(other.encode(x), (1000,), torch.float32))
        assert one.encode(x)["codes"].equal(other.encode(x)["codes"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": 1}, "from 2 to 8; got 1"),
        ({"bits": 9}, "from 2 to 8; got 9"),
        ({"bits": 4.0}, "from 2 to 8; got 4.0"),
        ({"bits": True}, "got True"),
        ({"per": "column"}, "Absmax.per.*got 'column'"),
        ({"per": 0}, "Absmax.per.*got 0"),
        ({"per": -64}, "Absmax.per.*got -64"),
        ({"per": 64.0}, "Absmax.per.*got 64.0"),
        ({"clip": "max"}, "Absmax.clip.*got 'max'"),
        ({"clip": 0.0}, "Absmax.clip.*got 0.0"),
        ({"clip": 101}, "Absmax.clip.*got 101"),
        ({"full_range": 1}, "Absmax.full_range.*true or false"),
    ],
    ids=str,
)
def test_wrong_fields(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Absmax(**fields)  # type: ignore[arg-type]
