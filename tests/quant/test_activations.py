"""Int8 activations: integer products held to float64 sums of codes, ranges to hand-worked numbers and to torch's."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import inputs, tiny
from torch import Tensor
from torch.nn import functional as F

from featherweight.core.errors import InputError
from featherweight.quant import Absmax, ZeroPoint, observers, ranges
from featherweight.quant.int8 import int_mm
from featherweight.quant.observers import observer
from featherweight.quant.scheme import Scheme

KINDS = [(C, per, how) for C in (Absmax, ZeroPoint) for per in ("row", "tensor") for how in ("dynamic", "static")]


def packed_for(scheme: Any, W: Tensor, x: Tensor) -> dict[str, Tensor]:
    watch = None
    if scheme.calibrated:
        watch = scheme.watch(W.shape[1])
        watch.add(x.reshape(-1, W.shape[1]))
    return scheme.encode(W, watch)  # type: ignore[no-any-return]


def by_hand(scheme: Any, x: Tensor, packed: dict[str, Tensor], W: Tensor) -> Tensor:
    """s_t s_o Σ (q - z)(c - z) in float64, from codes that are made one token at a time."""
    C = packed["codes"].double().view(W.shape)
    zw = packed["zeros"].double() if "zeros" in packed else torch.zeros(1, dtype=torch.float64)
    rows = []
    for t in x.reshape(-1, W.shape[1]).float():
        low, high = t.min().clamp(max=0), t.max().clamp(min=0)
        if scheme.calibrated:
            s, z = packed["x_scale"][0], packed["x_zero"][0].float()
        elif type(scheme) is Absmax:
            s, z = torch.maximum(-low, high) / 127, torch.tensor(0.0)
        else:
            s = high / 255 - low / 255
            z = (-low / s).round() - 128
        least = -127 if type(scheme) is Absmax else -128
        # dynamic absmax multiplies by the inverse scale, as the row quantizer does; `127 / tensor` would round twice
        q = (t * (torch.tensor(127.0) / torch.maximum(-low, high))).round() if type(scheme) is Absmax and not scheme.calibrated else (t / s).round() + z  # fmt: skip  # noqa: E501
        sums = (C - zw.view(-1, 1)) @ (q.clamp(least, 127).double() - z.double())
        assert sums.equal(sums.round())
        rows.append((sums.float() * s) * packed["scales"])
    return torch.stack(rows).view(*x.shape[:-1], len(W))


@pytest.mark.parametrize(("C", "per", "how"), KINDS)
def test_products_are_those_of_the_codes(C: Any, per: str, how: str) -> None:
    torch.manual_seed(0)
    scheme, W, x = C(per=per, activations=how), torch.randn(20, 50), torch.randn(3, 4, 50) + 0.5
    bias = torch.randn(20)
    packed = packed_for(scheme, W, x)
    y = scheme.linear(x, packed, (20, 50), bias)
    torch.testing.assert_close(y, by_hand(scheme, x, packed, W) + bias, rtol=2e-7, atol=2e-6)
    assert (y - F.linear(x, W, bias)).norm() < 0.012 * F.linear(x, W, bias).norm()


@pytest.mark.parametrize(("C", "per", "how"), KINDS)
@pytest.mark.parametrize("k", [1041, 33_100])
def test_long_sums_are_exact(C: Any, per: str, how: str, k: int) -> None:
    """Beyond 1,040 a float32 product of codes rounds; beyond 33,025 a centered sum may not fit into int32."""
    scheme = C(per=per, activations=how)
    W, x = torch.rand(3, k) + 1, torch.rand(2, k) + 1  # all of one sign: sums as large as they get
    packed = packed_for(scheme, W, x)
    y = scheme.linear(x, packed, (3, k), None)
    expected = by_hand(scheme, x, packed, W)
    assert ((y - expected).abs() <= 3e-7 * expected.abs()).all()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9), out=st.sampled_from([1, 3, 8, 17, 33]), k=st.sampled_from([1, 2, 3, 32, 48, 80, 96, 160]),
    kind=st.sampled_from(KINDS), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_every_shape(n: int, out: int, k: int, kind: Any, dtype: torch.dtype) -> None:
    C, per, how = kind
    torch.manual_seed(n + 10 * out + 1000 * k)
    scheme, W, x = C(per=per, activations=how), torch.randn(out, k), torch.randn(n, k).to(dtype)
    packed = packed_for(scheme, W, torch.randn(5, k))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in packed.items()} == scheme.layout((out, k))
    y = scheme.linear(x, packed, (out, k), None)
    assert y.shape == (n, out)
    assert y.dtype is dtype
    if n:
        expected = by_hand(scheme, x, packed, W).to(dtype)
        torch.testing.assert_close(y, expected, rtol=1e-2 if dtype is not torch.float32 else 1e-6, atol=2e-5)


def test_the_worked_vector_as_activations() -> None:
    """(-5.2, 4.3, 1.1, 0): absmax (-127, 105, 27, 0), zero-point (-128, 127, 42, 12) with s = 0.0372549, z = 12."""
    x = torch.tensor([[-5.2, 4.3, 1.1, 0.0]])
    q, s, _ = Absmax(activations="dynamic").quantized(x, {})
    assert q.tolist() == [[-127, 105, 27, 0]]
    q, s, z = ZeroPoint(activations="dynamic").quantized(x, {})
    assert q.tolist() == [[-128, 127, 42, 12]]
    assert (float(s), float(z)) == (pytest.approx(0.0372549), 12)


@pytest.mark.parametrize(("C", "per", "how"), KINDS)
def test_gradients_pass_straight_through_rounding(C: Any, per: str, how: str) -> None:
    scheme, W = C(per=per, activations=how), torch.randn(8, 12)
    x, bias = torch.randn(2, 3, 12, requires_grad=True), torch.randn(8, requires_grad=True)
    packed = packed_for(scheme, W, x.detach())
    y = scheme.linear(x, packed, (8, 12), bias)
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, g @ scheme.decode(packed, (8, 12), torch.float32))
    torch.testing.assert_close(bias.grad, g.sum((0, 1)))


def test_dynamic_serves_each_token_by_itself_and_static_the_layer() -> None:
    """A token of large values costs the others their resolution only where one scale serves all."""
    torch.manual_seed(0)
    W, x = torch.randn(16, 64), torch.randn(20, 64)
    x[0] *= 100
    off = {}
    for how in ("dynamic", "static"):
        scheme = Absmax(activations=how)
        y = scheme.linear(x, packed_for(scheme, W, x), (16, 64), None)
        off[how] = float((y - x @ W.T)[1:].norm() / (x @ W.T)[1:].norm())
        alone = scheme.linear(x[1:2], packed_for(scheme, W, x), (16, 64), None)
        assert alone.equal(y[1:2])
    assert off["static"] > 20 * off["dynamic"]


def test_affine_activations_use_the_range_of_what_has_one_sign() -> None:
    torch.manual_seed(0)
    W, x = torch.randn(16, 64), torch.randn(200, 64).relu()
    errors = []
    for scheme in (Absmax(activations="static"), ZeroPoint(activations="static")):
        packed = packed_for(scheme, W, x)
        Wq = scheme.decode(packed, (16, 64), torch.float32)
        errors.append(float((scheme.linear(x, packed, (16, 64), None) - x @ Wq.T).norm()))
    assert errors[1] < 0.6 * errors[0]


def test_nan_stays_visible_in_its_token() -> None:
    for C, per, how in KINDS:
        scheme, W, x = C(per=per, activations=how), torch.randn(4, 8), torch.randn(3, 8)
        packed = packed_for(scheme, W, x)
        good = scheme.linear(x, packed, (4, 8), None)
        x[1, 2] = float("nan")
        bad = scheme.linear(x, packed, (4, 8), None)
        assert bad[1].isnan().all()
        assert bad[[0, 2]].equal(good[[0, 2]])


def test_zeros_are_exact() -> None:
    for C, per, how in KINDS:
        scheme, W = C(per=per, activations=how), torch.randn(4, 8)
        packed = packed_for(scheme, W, torch.zeros(3, 8))
        assert scheme.linear(torch.zeros(2, 8), packed, (4, 8), None).equal(torch.zeros(2, 4))


# --- observers -----------------------------------------------------------------------------------------------------


def watched(kind: float | str, symmetric: bool, *batches: Tensor) -> tuple[float, float]:
    watch = observer(kind, symmetric)
    for x in batches:
        watch.add(x)
    assert watch.tokens == sum(len(x) for x in batches)
    low, high = watch.range()
    return float(low), float(high)


def test_the_range_of_all_and_of_moving_batches() -> None:
    a, b = torch.tensor([[-1.0, 2.0]]), torch.tensor([[-3.0, 1.0]])
    assert watched("minmax", False, a, b) == (-3, 2)
    assert watched("average", False, a, b) == pytest.approx((-1.2, 1.9))
    assert watched("minmax", False, a.abs() + 1) == (0, 3)  # 0 has a code of its own


def test_moving_averages_are_torchs() -> None:
    from torch.ao.quantization import MovingAverageMinMaxObserver

    torch.manual_seed(0)
    batches = [torch.randn(50, 4) for _ in range(8)]
    theirs = MovingAverageMinMaxObserver(averaging_constant=observers.MOVE)
    for x in batches:
        theirs(x)
    expected = (float(theirs.min_val), float(theirs.max_val))
    assert watched("average", False, *batches) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("percent", [90, 99, 99.9])
def test_percentiles_are_those_of_the_data(percent: float) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(500, 40) * s for s in (0.1, 1.0, 3.0)]  # the histogram widens twice
    x = torch.cat(batches).flatten()
    width = 2 * float(x.abs().max()) / observers.HALF
    low, high = watched(percent, True, *batches)
    assert high == -low == pytest.approx(float(x.abs().quantile(percent / 100)), abs=2 * width)
    low, high = watched(percent, False, *batches)
    assert high == pytest.approx(float(x.quantile(percent / 100)), abs=2 * width)
    assert low == pytest.approx(float(x.quantile(1 - percent / 100)), abs=2 * width)
    assert watched(100, True, *batches)[1] == pytest.approx(float(x.abs().max()))


def test_histograms_count_everything_whatever_comes_first() -> None:
    small, large = torch.full((3, 4), 0.01), torch.full((2, 4), -700.0)
    for order in ((small, large), (large, small)):
        watch: Any = observer("mse", True)
        for x in order:
            watch.add(x)
        assert watch.counts.sum() == 20
        at = (watch.counts * watch.centers()).sum()
        assert float(at) == pytest.approx(12 * 0.01 - 8 * 700, rel=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_gives_up_outliers_where_that_pays(symmetric: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 50)
    x[0, 0] = 60.0
    found = watched("mse", symmetric, x)
    errors = {
        f: float(ranges.range_error(x, x.min() * f, x.max() * f, symmetric).square().sum()) for f in observers.SHRINK
    }
    best = min(errors, key=lambda f: errors[f])
    assert best < 0.9
    got = float(ranges.range_error(x, torch.tensor(found[0]), torch.tensor(found[1]), symmetric).square().sum())
    assert got <= 1.02 * errors[best] < 0.98 * errors[1.0]


def test_an_outlier_token_and_four_observers() -> None:
    """Calibrated ranges against the full one, on data with one outlier in a hundred thousand values."""
    torch.manual_seed(0)
    W, x = torch.randn(16, 100), torch.randn(1000, 100)
    x[0, 0] = 80.0
    off = {}
    for kind in ("minmax", 99.9, "mse"):
        scheme = Absmax(activations="static", observer=kind)
        y = scheme.linear(x[1:], packed_for(scheme, W, x), (16, 100), None)
        off[kind] = float((y - x[1:] @ W.T).norm())
    assert off[99.9] < 0.2 * off["minmax"]
    assert off["mse"] < 0.8 * off["minmax"]  # it does not give an outlier up for nothing


def test_what_is_not_finite_has_no_place_in_a_range() -> None:
    x = torch.tensor([[1.0, float("nan")], [float("inf"), -2.0]])
    for kind in ("minmax", "average", "mse", 100):
        low, high = watched(kind, False, x)
        assert (low, high) == pytest.approx((-2, 1), rel=1e-3)
    assert watched("mse", True, torch.zeros(4, 2)) == (0, 0)
    assert watched(99.9, True, torch.full((1, 1), float("nan"))) == (0, 0)


# --- in a model ----------------------------------------------------------------------------------------------------


def test_a_model_calibrated_records_how() -> None:
    from featherweight.quant.calibrate import calibrated

    model = tiny("llama")
    places = [type("P", (), {"path": p, "module": m}) for p, m in model.named_modules() if p.endswith("_proj")]
    found = calibrated(model, places, Absmax(activations="static", observer=99.9), [inputs("llama")])
    assert all(int(p["x_tokens"]) == 14 and float(p["x_scale"]) > 0 for p in found.values())
    assert repr(Absmax(activations="static", observer=99.9)) == "Absmax(activations='static', observer=99.9)"
    form = ZeroPoint(activations="static", observer="mse").to_dict()
    assert Scheme.from_dict(form) == ZeroPoint(activations="static", observer="mse")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Absmax(activations="statc"), r"Absmax\.activations.*did you mean 'static'"),
        (lambda: Absmax(bits=4, activations="static"), r"multiplied in integers.*bits=8"),
        (lambda: Absmax(per=64, activations="dynamic"), r"multiplied in integers.*per=64"),
        (lambda: ZeroPoint(zero="float", activations="dynamic"), "integer zero points"),
        (lambda: Absmax(activations="static", observer="max"), r"Absmax\.observer.*minmax.*percentile.*'max'"),
        (lambda: Absmax(activations="static", observer=20), r"Absmax\.observer.*20"),
        (lambda: Absmax(activations="static").encode(torch.randn(3, 4)), "need the inputs of the layer"),
    ],
)
def test_what_cannot_be(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("k", [1, 2, 3, 64])
@pytest.mark.parametrize("out", [1, 3, 8])
def test_the_integer_product_on_small_shapes(n: int, k: int, out: int) -> None:
    """torch._int_mm on a CPU does not write its result where k = 1 and the weight is turned."""
    a, c = (torch.randint(-127, 128, (rows, k)).to(torch.int8) for rows in (n, out))
    assert int_mm(a, c.t()).equal(a.int() @ c.int().t())
