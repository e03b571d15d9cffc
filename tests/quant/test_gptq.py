"""GPTQ: held to the paper's column-by-column equations in float64, and to rounding to nearest."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from featherweight.core.errors import FeatherweightError, InputError
from featherweight.quant import bitstream
from featherweight.quant.gptq import GPTQ, Hessian
from featherweight.quant.gptq_solve import factor, half_up


def seen(X: Tensor) -> Hessian:
    watch = Hessian(X.shape[1])
    watch.add(X)
    return watch


def identity(n: int) -> Hessian:
    watch = Hessian(n)
    watch.H, watch.tokens = torch.eye(n), 1
    return watch


def layer(n: int = 512, out: int = 512, power: float = 0.62, samples: int = 4096) -> tuple[Tensor, Tensor]:
    """A weight, and inputs whose covariance has eigenvalues i^(-2 power) in directions of no special kind."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(n, n))[0]
    X = torch.randn(samples, n) * torch.arange(1, n + 1).float() ** -power @ turn.T
    return torch.randn(out, n) * 0.02, X


def decoded(scheme: GPTQ, W: Tensor, watch: Hessian) -> Tensor:
    return scheme.decode(scheme.encode(W, watch), tuple(W.shape), torch.float32)


def error(W: Tensor, Wq: Tensor, X: Tensor) -> float:
    return float((X @ (W - Wq).T).norm() / (X @ W.T).norm())


# --- the algorithm -----------------------------------------------------------------------------------------------


def naive(W: Tensor, H: Tensor, bits: int, group: int, damp: float, symmetric: bool, act_order: bool, static: bool) -> Tensor:  # fmt: skip  # noqa: E501
    """The paper's equations, one column at a time, with H⁻¹ of what is left made anew: no factor, no blocks."""
    W, H = W.double(), H.double().clone()
    n = W.shape[1]
    group = n if group == -1 else group
    top = 2**bits - 1
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    order = H.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(n)
    H = H + damp * H.diagonal().mean() * torch.eye(n, dtype=torch.float64)

    def fit(w: Tensor) -> tuple[Tensor, Tensor]:
        low, high = w.min(1).values.clamp(max=0), w.max(1).values.clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        s = (high - low) / top
        s = half_up(torch.where(s == 0, 1.0, s))
        return s, torch.full_like(s, (top + 1) / 2) if symmetric else (-low / s).round()

    fixed = [fit(W[:, i : i + group]) for i in range(0, n, group)]
    now, Wq = W.clone(), torch.zeros_like(W)
    for i, j in enumerate(order):
        left = order[i:]  # j comes first
        if static or not i % group:
            s, z = fixed[j // group] if static else fit(now[:, order[i : i + group]])
        q = (now[:, j] / s + z).round().clamp(0, top)
        Wq[:, j] = (q - z) * s
        inverse = torch.linalg.inv(H[left][:, left])
        now[:, left] -= torch.outer((now[:, j] - Wq[:, j]) / inverse[0, 0], inverse[0])
    return Wq


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [-1, 16, 24, 200])
@pytest.mark.parametrize(("act_order", "static"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_equations_one_column_at_a_time(bits: int, group: int, act_order: bool, static: bool, symmetric: bool) -> None:  # fmt: skip  # noqa: E501
    W, X = layer(150, 12, samples=600)
    X[:, 7] = 0
    scheme = GPTQ(bits, group, act_order, 0.01, symmetric, static)
    watch = seen(X.double())  # float64 throughout: codes do not hang on the last bit of float32
    got = decoded(scheme, W, watch)
    expected = naive(W, watch.H, bits, group, 0.01, symmetric, act_order, static).float()
    same = (got - expected).abs() <= 1e-6 * W.abs().max()
    # a row that rounding to nearest serves better keeps that; any other is the naive one's
    rows = same.all(1)
    assert rows.float().mean() > 0.9
    E, F = W - got, W - expected
    H = watch.H.float()
    for r in range(len(W)):
        assert E[r] @ H @ E[r] <= F[r] @ H @ F[r] * (1 + 1e-5)


def test_half_precision_of_scales_costs_nothing_and_is_exact() -> None:
    s = (0.5 + torch.rand(10_000) / 2) * 2.0 ** torch.randint(-13, 14, (10_000,))
    up = half_up(s)
    assert up.half().float().equal(up)
    assert (up >= s).all()
    assert (up <= s * (1 + 2.0**-9)).all()
    outside = torch.tensor([1e-6, 1e-30, 1e6, float("inf")])
    assert half_up(outside).equal(outside)


# The reference's table: relative output error of rounding to nearest, GPTQ and GPTQ with act-order.
TABLE = {(4, -1): (0.1179, 0.0521, 0.0487), (4, 128): (0.1000, 0.0445, 0.0420), (4, 64): (0.0913, 0.0404, 0.0385),
         (3, -1): (0.2535, 0.1117, 0.1052), (2, 128): (0.5033, 0.2739, 0.2227)}  # fmt: skip


@pytest.fixture(scope="session")
def big() -> tuple[Tensor, Tensor, Hessian]:
    W, X = layer()
    return W, X, seen(X)


@pytest.mark.parametrize(("bits", "group"), TABLE)
def test_the_synthetic_layer(big: tuple[Tensor, Tensor, Hessian], bits: int, group: int) -> None:
    """How the reference turned its spectrum is not known; ours gives its errors within a tenth."""
    W, X, watch = big
    scheme = GPTQ(bits=bits, group=group)
    plain, ours, ordered = (
        error(W, decoded(s, W, w), X)
        for s, w in ((scheme, identity(512)), (scheme, watch), (replace(scheme, act_order=True), watch))
    )
    assert ours <= 0.55 * plain
    assert ordered <= ours
    assert plain == pytest.approx(TABLE[bits, group][0], rel=0.05)
    assert ours == pytest.approx(TABLE[bits, group][1], rel=0.15)


def test_more_damping_costs_a_little(big: tuple[Tensor, Tensor, Hessian]) -> None:
    W, X, watch = big
    little, much = (error(W, decoded(GPTQ(group=-1, damp=d), W, watch), X) for d in (0.01, 0.1))
    assert 1.0 < much / little < 1.12


def test_static_groups_keep_neighbors_together_and_gain_from_the_order(big: tuple[Tensor, Tensor, Hessian]) -> None:
    W, X, watch = big
    plain, ordered = (decoded(GPTQ(group=64, act_order=o, static_groups=True), W, watch) for o in (False, True))
    assert error(W, ordered, X) < error(W, plain, X)
    assert "g_idx" not in GPTQ(group=64, act_order=True, static_groups=True).encode(W, watch)


# --- what must hold for any layer ---------------------------------------------------------------------------------


# inputs that were always 0 beside live ones, in groups that are fitted anew
@example(k=17, out=6, bits=2, group=3, order=(False, False), symmetric=False, samples=1, seed=0)
@settings(max_examples=60, deadline=None)
@given(
    k=st.sampled_from([1, 2, 3, 5, 17, 32, 48, 80, 96, 112, 160, 200]),
    out=st.integers(1, 20),
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([-1, 1, 3, 16, 32, 100, 128, 4096]),
    order=st.sampled_from([(False, False), (True, False), (True, True), (False, True)]),
    symmetric=st.booleans(),
    samples=st.sampled_from([1, 7, 300]),
    seed=st.integers(0, 99),
)
def test_every_layer(
    k: int, out: int, bits: int, group: int, order: tuple[bool, bool], symmetric: bool, samples: int, seed: int
) -> None:
    """What is stored has the layout's names, types and shapes; no row's loss is above rounding to nearest in the same
    groups; the bound holds where there is one; codes survive decoding and encoding.
    """
    torch.manual_seed(seed)
    W, X = torch.randn(out, k) * 3, torch.randn(samples, k) * torch.rand(k).round()
    scheme = GPTQ(bits, group, order[0], 0.01, symmetric, order[1])
    watch = seen(X)
    packed = scheme.encode(W, watch)
    assert {n: (t.dtype, tuple(t.shape)) for n, t in packed.items()} == scheme.layout((out, k))
    assert sum(t.numel() * t.element_size() for t in packed.values()) == scheme.size((out, k))
    Wq = scheme.decode(packed, (out, k), torch.float32)
    assert Wq.isfinite().all()
    assert ((W - Wq).abs() <= scheme.bound(W)).all()
    if not scheme.scattered:
        nearest = replace(scheme, act_order=False, static_groups=True)
        E, F = W - Wq, W - decoded(nearest, W, identity(k))
        H = watch.H
        assert ((E @ H * E).sum(1) <= (F @ H * F).sum(1) * (1 + 1e-4) + 1e-6).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_without_correlations_it_is_rounding_to_nearest(symmetric: bool) -> None:
    torch.manual_seed(0)
    W = torch.randn(20, 150)
    s = (2 * W.abs().amax(1) if symmetric else W.amax(1) - W.amin(1)) / 15
    s = half_up(s)[:, None]
    z = 8.0 if symmetric else (-W.amin(1, keepdim=True) / s).round()
    expected = ((W / s + z).round().clamp(0, 15) - z) * s
    assert decoded(GPTQ(group=-1, symmetric=symmetric), W, identity(150)).equal(expected)
    # half a step is then guaranteed
    assert ((W - expected).abs() <= s / 2 * (1 + 1e-5)).all()


def test_equal_inputs_have_no_order() -> None:
    """A constant diagonal leaves the columns where they are."""
    torch.manual_seed(0)
    n = 96
    A = torch.randn(n, n)
    H = A @ A.T + n * torch.eye(n)
    d = H.diagonal().rsqrt()
    watch = identity(n)
    watch.H = d[:, None] * H * d
    watch.H.fill_diagonal_(1)
    W = torch.randn(8, n)
    plain, ordered = (GPTQ(group=32, act_order=o).encode(W, watch) for o in (False, True))
    assert ordered.pop("g_idx").equal(torch.arange(n, dtype=torch.int32) // 32)
    assert all(t.equal(ordered[name]) for name, t in plain.items())


def test_an_input_that_never_comes_is_rounded_to_nearest() -> None:
    W, X = layer(64, 16, samples=400)
    X[:, [3, 40]] = 0
    for act_order in (False, True):
        Wq = decoded(GPTQ(group=-1, act_order=act_order), W, seen(X))
        s = (W.amax(1).clamp(min=0) - W.amin(1).clamp(max=0)) / 15
        assert Wq.isfinite().all()
        assert ((W - Wq).abs()[:, [3, 40]] <= 0.501 * s[:, None]).all()
    assert decoded(GPTQ(), W, seen(torch.zeros(9, 64))).isfinite().all()  # all of them


def test_a_hessian_that_is_not_positive_definite_is_damped_more_and_said() -> None:
    W, X = layer(64, 16, samples=20)  # fewer samples than inputs
    with pytest.warns(UserWarning, match="not positive definite at damp=0, took 0.0015"):
        Wq = decoded(GPTQ(damp=0.0, group=-1), W, seen(X))
    assert error(W, Wq, X) < error(W, decoded(GPTQ(group=-1), W, identity(64)), X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded(GPTQ(), W, seen(X))


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse() -> None:
    A = torch.randn(40, 60, dtype=torch.float64)
    H = A @ A.T
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(40)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(factor(H, 0.01), expected)


def test_the_hessian_is_a_running_mean() -> None:
    X = torch.randn(50, 6)
    whole, parts = seen(X), Hessian(6)
    for piece in (X[:1], X[1:20], X[20:20], X[20:]):
        parts.add(piece)
    assert parts.tokens == whole.tokens == 50
    torch.testing.assert_close(parts.H, 2 * X.T @ X / 50)
    torch.testing.assert_close(parts.H, whole.H)
    half = Hessian(6)
    half.add(X.bfloat16())
    assert half.H.dtype is torch.float32


def test_a_nan_spoils_its_own_output_only() -> None:
    W, X = layer(64, 8, samples=400)
    good = decoded(GPTQ(group=16), W, seen(X))
    W[3, 5] = float("nan")
    bad = decoded(GPTQ(group=16), W, seen(X))
    assert bad[3, :16].isnan().all()
    assert bad[:3].equal(good[:3])
    assert bad[4:].equal(good[4:])


def test_experts_and_vectors() -> None:
    """Every other dimension is a row."""
    W, X = torch.randn(2, 3, 16), torch.randn(100, 16)
    together = decoded(GPTQ(group=8), W, seen(X))
    assert together.equal(decoded(GPTQ(group=8), W.view(6, 16), seen(X)).view(2, 3, 16))
    assert decoded(GPTQ(), W[0, 0], seen(X)).shape == (16,)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 31, 32, 33, 100])
def test_the_stream_of_bits(bits: int, n: int) -> None:
    codes = torch.randint(0, 2**bits, (3, n)).to(torch.uint8)
    stream = bitstream.pack(codes, bits)
    assert stream.shape == (3, -(-n * bits // 8)) == (3, bitstream.stored(n, bits))
    assert bitstream.unpack(stream, bits, n).equal(codes)
    for row, held in zip(codes.tolist(), stream.tolist(), strict=True):
        number = sum(q << (bits * i) for i, q in enumerate(row))
        assert bytes(held) == number.to_bytes(len(held), "little")


def test_files_of_gptq_hold_the_same_words() -> None:
    """qweight packs along the input, lowest bits first: int32 (in/8, out) for 4 bits; 3 bits: 32 values in 3 words."""
    codes = torch.randint(0, 16, (5, 64)).to(torch.uint8)
    qweight = torch.zeros(8, 5, dtype=torch.int64)
    for i in range(64):
        qweight[i // 8] |= codes[:, i].long() << 4 * (i % 8)
    words = bitstream.pack(codes, 4).view(torch.int32).T
    assert (words.long() & 0xFFFFFFFF).equal(qweight)
    three = bitstream.pack(torch.tensor([[5] * 10 + [6] + [0] * 21], dtype=torch.uint8), 3).view(torch.int32)
    # ten values of 3 bits, the eleventh split: two bits in the first word, one in the second
    assert three[0, 0].item() & 0xFFFFFFFF == sum(5 << 3 * i for i in range(10)) | (6 & 3) << 30
    assert three[0, 1].item() == 6 >> 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"bits": 5}, r"GPTQ\.bits.*2, 3, 4 or 8.*5"),
        ({"group": 0}, r"GPTQ\.group.*at least 1"),
        ({"damp": -0.1}, r"GPTQ\.damp"),
        ({"damp": float("nan")}, r"GPTQ\.damp"),
        ({"act_order": 1}, r"GPTQ\.act_order.*true or false"),
    ],
)
def test_fields_that_are_wrong(fields: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        GPTQ(**fields)


def test_inputs_that_do_not_fit() -> None:
    W = torch.randn(4, 8)
    with pytest.raises(InputError, match="needs the inputs of the layer"):
        GPTQ().encode(W)
    with pytest.raises(InputError, match="needs the inputs of the layer"):
        GPTQ().encode(W, Hessian(8))
    with pytest.raises(InputError, match=r"not this weight's.*8 features.*9"):
        GPTQ().encode(W, identity(9))
    with pytest.raises(InputError, match="empty"):
        GPTQ().encode(torch.zeros(0, 8), identity(8))
    broken = identity(8)
    broken.H[2, 3] = float("nan")
    with pytest.raises(FeatherweightError, match="not finite"):
        GPTQ().encode(W, broken)


def test_bits_a_parameter() -> None:
    """4 bits and a float32 scale and a 4-bit zero for each 128: 4.28."""
    assert GPTQ().size((4096, 4096)) * 8 / 4096**2 == pytest.approx(4 + 36 / 128)
    assert GPTQ(bits=3).size((4096, 4096)) * 8 / 4096**2 == pytest.approx(3 + 35 / 128)
    assert GPTQ(symmetric=True).size((4096, 4096)) * 8 / 4096**2 == pytest.approx(4.25)
    assert GPTQ(act_order=True).size((4096, 4096)) - GPTQ().size((4096, 4096)) == 4 * 4096


@pytest.mark.parametrize("bits", [3, 4])
def test_a_report_counts_the_codes(bits: int) -> None:
    """Rows end on a whole byte, and the lowest bits come first: not what other formats' counts would take them for."""
    from support.models import inputs, tiny

    import featherweight as fw

    model = tiny("llama")
    report = fw.quantize(model, GPTQ(bits=bits, group=16), batches=[inputs("llama")])
    for layer in report.layers:
        module = model.get_submodule(layer.path)
        codes = bitstream.unpack(module.packed["codes"], bits, layer.shape[1])
        assert layer.usage.counts == tuple(codes.flatten().bincount().tolist())
        assert layer.output is not None
        assert layer.output < (0.1 if bits == 4 else 0.2)
    assert model.get_submodule(layer.path).scheme == GPTQ(bits=bits, group=16)
