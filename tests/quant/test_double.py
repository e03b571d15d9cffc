"""Double quantization: its bytes, its map, and scales that would break it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bitsandbytes import functional
from torch import Tensor

from featherweight.quant import FP4, NF4, double
from featherweight.quant.codebooks import LEVELS, reach


def test_the_dynamic_map() -> None:
    table = LEVELS["dynamic8"]
    assert len(set(table)) == 256
    assert list(table) == sorted(table)
    assert table[127] == 0.0
    assert sum(v < 0 for v in table) == 127
    assert table[255] == 1.0
    assert table[0] == pytest.approx(-0.99296874, abs=1e-8)
    assert min(abs(v) for v in table if v) == pytest.approx(5.5e-7)
    assert reach("dynamic8") == pytest.approx(0.00704, abs=1e-5)


def test_the_dynamic_map_is_bitsandbytes_to_the_bit() -> None:
    assert torch.tensor(LEVELS["dynamic8"]).equal(functional().create_dynamic_map())


def test_a_group_of_scales_by_hand() -> None:
    """Scales 1, 2, 3: offset 2, differences -1, 0, 1, greatest 1; their codes are 0 (-0.993), 127 and 255."""
    packed = double.encode(torch.tensor([1.0, 2.0, 3.0]))
    assert packed["nested_offset"] == 2.0
    assert packed["nested_absmax"].tolist() == [1.0]
    assert packed["absmax"].tolist() == [0, 127, 255]
    assert double.decode(*packed.values()).tolist() == pytest.approx([2 - 0.99296874, 2, 3])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bitsandbytes_gives_the_same_bytes(kind: str, dtype: torch.dtype) -> None:
    W = torch.randn(512, 640, generator=torch.Generator().manual_seed(0)).to(dtype)
    _, state = functional().quantize_4bit(W, blocksize=64, quant_type=kind, compress_statistics=True)
    packed = (NF4 if kind == "nf4" else FP4)(double=True).encode(W)
    torch.testing.assert_close(packed["nested_offset"], state.offset, rtol=1e-6, atol=0)
    torch.testing.assert_close(packed["nested_absmax"], state.state2.absmax, rtol=1e-6, atol=0)
    theirs = packed | {"absmax": state.absmax.view(-1)}
    assert float((theirs["absmax"] != packed["absmax"]).float().mean()) < 5e-3  # theirs is not always the nearest level
    ours, others = (double.decode(p["absmax"], p["nested_absmax"], p["nested_offset"]) for p in (packed, theirs))
    exact = NF4().encode(W)["absmax"]
    assert ((ours - exact).abs() <= (others - exact).abs() + 1e-5).all()


def test_error_of_the_scales() -> None:
    x = torch.randn(1 << 20, generator=torch.Generator().manual_seed(1))
    scales = NF4().encode(x)["absmax"]
    assert double.error(double.encode(scales), scales) == pytest.approx(1.65e-3, rel=0.05)


def skewed(factor: float) -> tuple[Tensor, Tensor]:
    """256 blocks of N(0, 1), one of them multiplied, and which are not."""
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(2))
    x[7] *= factor
    return x, torch.arange(256) != 7


@pytest.mark.parametrize(("factor", "most"), [(1, 0.0930), (100, 0.0940), (1e3, 0.0960), (1e4, 0.101), (1e9, 0.20)])
def test_one_great_scale_does_not_spoil_the_others(factor: float, most: float) -> None:
    """Relative error of the 255 ordinary blocks; with the mean as offset it is 0.166 at 1000 and 180 times at 1e6."""
    x, others = skewed(factor)
    decoded = NF4(double=True).decode(NF4(double=True).encode(x), (256, 64), torch.float32)
    assert float((decoded - x)[others].norm() / x[others].norm()) < most


def test_the_mean_alone_breaks_on_it() -> None:
    x, others = skewed(1e6)
    scales = NF4().encode(x)["absmax"]
    packed = double.around(scales, scales.mean())
    ratio = double.decode(*packed.values()) / scales
    assert float(ratio[others].median()) > 100  # kept above zero, and useless


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(count=st.integers(1, 600), spread=st.floats(0, 30), zeros=st.booleans(), seed=st.integers(0, 999))
def test_decoded_scales_are_positive(count: int, spread: float, zeros: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(torch.randn(count, generator=generator) * spread).clamp(1e-37, 1e37)
    if zeros:
        scales = scales * (torch.rand(count, generator=generator) < 0.5)
    decoded = double.decode(*double.encode(scales).values())
    assert decoded.isfinite().all()
    assert (decoded[scales > 0] > 0).all()


@settings(deadline=None, derandomize=True, database=None)
@given(count=st.integers(1, 600), spread=st.floats(0, 5), seed=st.integers(0, 999))
def test_the_offset_that_serves_better_is_taken(count: int, spread: float, seed: int) -> None:
    scales = torch.exp(torch.randn(count, generator=torch.Generator().manual_seed(seed)) * spread)
    found = double.error(double.encode(scales), scales)
    mean, median = (double.error(double.around(scales, o), scales) for o in (scales.mean(), scales.median()))
    assert found <= max(double.POOR, min(mean, median) * (1 + 1e-4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_spoils_its_256_scales_alone(bad: float) -> None:
    scales = torch.rand(1000, generator=torch.Generator().manual_seed(3)) + 1
    scales[300] = bad
    decoded = double.decode(*double.encode(scales).values())
    assert decoded[256:512].isnan().all()
    others = torch.cat((decoded[:256], decoded[512:]))
    torch.testing.assert_close(others, torch.cat((scales[:256], scales[512:])), rtol=0.01, atol=0)


def test_all_scales_equal_or_zero() -> None:
    for value in (0.0, 3.0):
        packed = double.encode(torch.full((300,), value))
        assert double.decode(*packed.values()).tolist() == [value] * 300


def test_codes_survive_a_second_encoding() -> None:
    W = torch.randn(64, 640, generator=torch.Generator().manual_seed(4))
    scheme = NF4(double=True)
    packed = scheme.encode(W)
    decoded = scheme.decode(packed, (64, 640), torch.float32)
    again = scheme.encode(decoded)
    assert again["codes"].equal(packed["codes"])
    torch.testing.assert_close(scheme.decode(again, (64, 640), torch.float32), decoded, rtol=0, atol=2e-3)


def test_equation_6_of_qlora() -> None:
    """doubleDequant(c1, c2, W) = dequant(dequant(c1, c2), W), in bf16."""
    W = torch.randn(16, 64, generator=torch.Generator().manual_seed(5))
    scheme = NF4(double=True)
    packed = scheme.encode(W)
    c2 = double.decode(packed["absmax"], packed["nested_absmax"], packed["nested_offset"])
    inner = NF4().decode({"codes": packed["codes"], "absmax": c2}, (16, 64), torch.bfloat16)
    assert scheme.decode(packed, (16, 64), torch.bfloat16).equal(inner)
    assert inner.dtype == torch.bfloat16
