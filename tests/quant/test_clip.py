"""Clipping: percentiles and least error, for every scheme that has it, and what it does to outliers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from featherweight.quant import FP4, NF4, Absmax, Blockwise, LLMInt8, Quantile, Scheme, ZeroPoint, clip

CLIPPING: tuple[Any, ...] = (
    Absmax(4), Absmax(8, per="tensor"), Absmax(3, per=128), Absmax(4, full_range=True), ZeroPoint(4),
    ZeroPoint(3, per=64, zero="float"), NF4(), NF4(double=True), FP4(variant="e3m0"), Blockwise(bits=3),
    LLMInt8(), Quantile(),
)  # fmt: skip


def decoded(scheme: Any, W: Tensor) -> Tensor:
    return scheme.decode(scheme.encode(W), tuple(W.shape), torch.float32)


def test_every_scheme_that_scales_by_a_range_can_clip_it() -> None:
    """All but floats without a scale, and GPTQ, whose grid follows the weights that it moves."""
    ours = {name: kind for name, kind in Scheme.known.items() if kind.__module__.startswith("featherweight.")}
    without = {name for name, kind in ours.items() if not hasattr(kind, "clip")}
    assert without == {"half", "gptq"}
    assert {type(s) for s in CLIPPING} == {ours[n] for n in ours.keys() - without}


@pytest.fixture(scope="module")
def heavy() -> Tensor:
    """Rows of N(0, 1) with one outlier in 256."""
    W = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    W[:, 7] *= 20
    return W


@pytest.mark.parametrize("scheme", CLIPPING, ids=repr)
def test_least_error_is_never_worse(scheme: Any, heavy: Tensor) -> None:
    """In the norm that is searched, |w - ŵ|^2.4: the whole range is among what is tried."""
    plain, best = ((decoded(s, heavy) - heavy).abs().pow(2.4) for s in (scheme, replace(scheme, clip="mse")))
    slack = 1.01 if getattr(scheme, "double", False) else 1 + 1e-5  # scales are quantized after the search
    assert float(best.sum()) <= float(plain.sum()) * slack


@pytest.mark.parametrize("option", [95, "mse"])
@pytest.mark.parametrize("scheme", CLIPPING, ids=repr)
def test_the_stated_bound_counts_what_was_cut(scheme: Any, option: Any, heavy: Tensor) -> None:
    clipping = replace(scheme, clip=option)
    assert bool(((decoded(clipping, heavy) - heavy).abs() <= clipping.bound(heavy)).all())


@pytest.mark.parametrize(("scheme", "least"), [(Absmax(4), 0.9), (ZeroPoint(4), 0.95), (Absmax(3), 0.8)], ids=repr)
def test_least_error_pays_on_outliers(scheme: Any, least: float) -> None:
    W = student(64, 256)
    plain, best = ((decoded(s, W) - W).norm() for s in (scheme, replace(scheme, clip="mse")))
    assert float(best / plain) < least


def student(rows: int, width: int) -> Tensor:
    """t with 3 degrees of freedom."""
    generator = torch.Generator().manual_seed(1)
    z, *chi = (torch.randn(rows, width, generator=generator) for _ in range(4))
    return z / (sum(c * c for c in chi) / 3).sqrt()


def test_the_search_is_an_exhaustive_one() -> None:
    """One row, int4: every factor from 1 down to 0.21 by hand."""
    x = student(1, 64)[0]
    errors = {}
    for i in range(80):
        a = 1 - i / 100
        s = a * x.abs().max() / 7
        errors[a] = float(((x / s).round().clamp(-7, 7) * s - x).abs().pow(2.4).sum())
    best = min(errors, key=errors.__getitem__)
    assert 0.21 <= best < 1
    scale = Absmax(4, clip="mse").encode(x)["scales"]
    torch.testing.assert_close(scale, (best * x.abs().max() / 7)[None], rtol=1e-6, atol=0)


def test_affine_ranges_shrink_at_both_ends_by_the_same_factor() -> None:
    x = torch.cat((torch.rand(254, generator=torch.Generator().manual_seed(2)), torch.tensor([-0.3, 4.0])))
    plain, best = (ZeroPoint(4, clip=c).encode(x)["scales"] for c in (None, "mse"))
    factor = float(best / plain)
    assert factor < 0.9
    assert round(factor * 100) == pytest.approx(factor * 100, abs=1e-3)


def test_percentiles_by_hand() -> None:
    """100 values 1 ... 100 with signs: the 97th percentile of |w| is 97, and what is beyond goes there."""
    x = torch.arange(1.0, 101.0) * torch.tensor([1.0, -1.0]).repeat(50)
    packed = Absmax(8, clip=97).encode(x)
    assert packed["scales"].tolist() == [pytest.approx(97 / 127)]
    assert decoded(Absmax(8, clip=97), x)[-4:].tolist() == pytest.approx([97, -97, 97, -97])
    assert Absmax(8, clip=96.5).encode(x)["scales"].tolist() == [pytest.approx(97 / 127)]
    assert Absmax(8, clip=100).encode(x)["scales"].equal(Absmax(8).encode(x)["scales"])


def test_percentiles_pay_where_a_tensor_has_one_scale() -> None:
    W = student(64, 256)
    plain, cut = (decoded(Absmax(4, per="tensor", clip=c), W) for c in (None, 99.9))
    assert float((cut - W).norm() / (plain - W).norm()) < 0.6


def test_infinity_is_not_clipped_out_of_sight(heavy: Tensor) -> None:
    W = heavy.clone()
    W[3, 100] = torch.inf
    for option in (90, "mse"):
        back = decoded(Absmax(4, clip=option), W)
        assert not back[3].isfinite().any()
        assert back[[0, 1, 2, 4]].isfinite().all()


def test_rows_are_searched_in_pieces_to_the_same(heavy: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Absmax(4, clip="mse").encode(heavy)
    monkeypatch.setattr(clip, "SEARCHED", 600)
    for name, tensor in Absmax(4, clip="mse").encode(heavy).items():
        assert tensor.equal(whole[name])
