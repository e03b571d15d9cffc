"""Native code against its definition in plain torch: the same bits at every instruction level this processor has."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.operations import LAW, NF4, TABLES, agrees, calls, same, weights
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from featherweight.kernels import native, native_linear
from featherweight.quant import ops
from featherweight.quant.scratch import release, scratch

ROOT = Path(__file__).parents[2]


def agree(name, *args):
    return agrees(name, ops.native[name], *args)


# --- 4 bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("table", TABLES)
def test_encode_and_decode_on_the_law_list(level, table, dtype):
    for k in LAW:
        for block in (1, 3, 32, 64, 128, 4096):
            W = weights(5, k, dtype=dtype, seed=k)
            codes, absmax = agree("encode4", W, TABLES[table], block)
            for out in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                agree("decode4", codes, absmax, TABLES[table], block, (5, k), out)


def test_encode_and_decode_of_every_shape(level):
    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 300), st.booleans(), st.sampled_from(list(TABLES)))
    def check(rows, k, block, half, table):
        W = weights(rows, k, dtype=torch.bfloat16 if half else torch.float32, seed=rows * k)
        codes, absmax = agree("encode4", W, TABLES[table], block)
        agree("decode4", codes, absmax, TABLES[table], block, (rows, k), torch.bfloat16 if half else torch.float32)

    check()


def test_ties_go_to_the_lower_value(level):
    middles = (NF4[1:] + NF4[:-1]) / 2
    W = torch.cat([torch.ones(1), middles, middles.nextafter(torch.tensor(2.0))])
    codes, _ = agree("encode4", W, NF4, 64)
    nibbles = torch.stack((codes >> 4, codes & 15), 1).view(-1)
    assert nibbles[:31].tolist() == [15, *range(15), *range(1, 16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_with_nan_or_inf_is_poisoned_alone(level, dtype):
    W = weights(4, 96, dtype=dtype)
    W.view(-1)[70], W.view(-1)[200], W.view(-1)[383] = float("nan"), float("-inf"), float("nan")
    codes, absmax = agree("encode4", W, NF4, 64)
    back = agree("decode4", codes, absmax, NF4, 64, (4, 96), dtype).view(-1, 64)
    assert back[1].isnan().all()
    assert back[5].isnan().all()
    assert back[[0, 2, 4]].isfinite().all()


def test_zeros_extremes_and_denormals(level):
    tiny = torch.tensor([1e-45, -3e-42, 1e-39, 0.0, -0.0, 1e-38, 2e-38, 0.0])
    huge = torch.tensor([3.4e38, -3.3e38, 1e38, 1e30, -1e-30, 0.0, 1.0, 2.0])
    for W in (torch.zeros(130), torch.full((129,), -0.0), tiny.repeat(9), huge.repeat(9), torch.full((64,), 7.0)):
        for block in (8, 64, 2):
            codes, absmax = agree("encode4", W, NF4, block)
            for out in (torch.float32, torch.bfloat16):
                agree("decode4", codes, absmax, NF4, block, W.shape, out)


def test_large_tensors_on_two_threads(level):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for block in (64, 33, 1 << 20):
            W = weights(1003, 2049)
            codes, absmax = agree("encode4", W, NF4, block)
            agree("decode4", codes, absmax, NF4, block, W.shape, torch.bfloat16)
        codes, scale = agree("quantize_rows", W, None)
        agree("decode8", codes, scale, 2049, W.shape, torch.bfloat16)
        agree("rescale", codes.int() * 999, scale, weights(2049), None, torch.float32)
    finally:
        torch.set_num_threads(before)


def test_any_layout_and_parameters(level):
    W = weights(64, 96)
    for other in (W.t(), W[:, ::3], W[::2], W.requires_grad_(), torch.nn.Parameter(W.detach()), W.view(4, 16, 96)):
        codes, absmax = ops.encode4(other, NF4, 64)
        plain = ops.plain_encode4(other, NF4, 64)
        assert torch.equal(codes, plain[0])
        assert torch.equal(absmax, plain[1])
        assert not absmax.requires_grad


@pytest.mark.parametrize("n", [1, 100, 257, 70001])
def test_scales_of_scales(level, n):
    codes = torch.randint(0, 256, (n,), dtype=torch.uint8)
    table, absmax = weights(256).sort().values, weights((n + 255) // 256).abs()
    agree("decode_scales", codes, table, absmax, torch.tensor(0.37), 256)
    agree("decode_scales", codes, table, absmax, torch.tensor([0.37]), 256)


# --- 8 bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode8_on_the_law_list(level, dtype):
    for k in LAW:
        for block in (1, 3, 32, 64, k, 5 * k):
            codes = torch.randint(-128, 128, (5, k), dtype=torch.int8)
            agree("decode8", codes, weights(-(-5 * k // block)), block, (5, k), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantize_rows_on_the_law_list(level, dtype):
    for k in LAW:
        x = weights(6, k, dtype=dtype, seed=k)
        x[1], x[2] = 0, 1e-40
        x[3, -1], x[4, 0] = float("nan"), float("inf")
        agree("quantize_rows", x, None)
        agree("quantize_rows", x.t().contiguous().t(), None)
        codes, scale = agree("quantize_rows", x, torch.arange(k) % 3 == 0)
        assert not codes[:, ::3].any()
        assert scale[0].isfinite()
        agree("quantize_rows", x, torch.ones(k, dtype=torch.bool))


def test_quantize_rows_rounds_half_to_even(level):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 3.49999]])
    codes, scale = agree("quantize_rows", x, None)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, 126, 3]]
    assert scale.item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16])
def test_rescale(level, dtype, bias):
    for m in LAW:
        acc = torch.randint(-(1 << 31), 1 << 31, (7, m), dtype=torch.int64).to(torch.int32)
        agree("rescale", acc, weights(7), weights(m), None if bias is None else weights(m, dtype=bias), dtype)


# --- products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_packed_product_is_over_the_decoded_weight_to_the_bit(level, dtype):
    """Rows of the identity pick single weights: no sum, so no order of summation to differ in."""
    for k in (*(k for k in LAW if k % 2 == 0), 64, 128, 192, 320, 2176, 4160):  # whole blocks, and a last half of 128
        W, eye = weights(37, k), torch.eye(k, dtype=dtype)[-60:]
        codes, absmax = ops.encode4(W, NF4, 64)
        for rows in (1, 3, 7, 60):
            y = ops.native["linear4"](eye[-rows:], codes, absmax, NF4, 64, (37, k), None, None, None, 0.0)
            assert torch.equal(y, ops.decode4(codes, absmax, NF4, 64, (37, k), dtype).t()[-rows:])
            for block in (k, 64, 37 * k):
                q, scale = ops.quantize_rows(W)[0], weights(-(-37 * k // block))
                y = ops.native["linear8"](eye[-rows:], q, scale, block, (37, k), None)
                assert torch.equal(y, ops.decode8(q, scale, block, (37, k), dtype).t()[-rows:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_packed_product(level, dtype):
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 5e-2}
    for k in LAW:
        for rows in (1, 2, 3, 4, 5, 8, 17, 64):
            n, block = 8 + rows, 64 if rows != 4 else 32
            codes, absmax = ops.encode4(weights(n, k, seed=k), NF4, block)
            x, bias = weights(rows, k, dtype=dtype, seed=rows), weights(n, dtype=dtype) if rows % 2 else None
            y = ops.linear4(x, codes, absmax, NF4, block, (n, k), bias)
            W = ops.decode4(codes, absmax, NF4, block, (n, k), dtype).double()
            torch.testing.assert_close(
                y.double(), F.linear(x.double(), W, None if bias is None else bias.double()), **close
            )
            codes, scale = ops.quantize_rows(weights(n, k, seed=k))
            y = ops.linear8(x.view(1, rows, k), codes, scale, k, (n, k), bias)[0]
            W = ops.decode8(codes, scale, k, (n, k), dtype).double()
            torch.testing.assert_close(
                y.double(), F.linear(x.double(), W, None if bias is None else bias.double()), **close
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_low_rank_term_of_the_packed_product(level, dtype):
    for k in (2, 48, 64, 1200, 2304):
        for rank in (1, 3, 16, 40):
            for rows in (1, 2, 5, 8, 20):
                codes, absmax = ops.encode4(weights(21, k, seed=k), NF4, 64)
                x, bias = weights(rows, k, dtype=dtype), weights(21, dtype=dtype)
                A = weights(rank, k, dtype=torch.float32 if rank % 2 else dtype, seed=1) / k**0.5
                B = weights(21, rank, dtype=torch.float32 if rows % 2 else dtype, seed=2)
                y = ops.native["linear4"](x, codes, absmax, NF4, 64, (21, k), bias, A, B, 0.7)
                W = ops.decode4(codes, absmax, NF4, 64, (21, k), dtype).double() + 0.7 * B.double() @ A.double()
                far = 2e-2 if rows <= ops.FEW else 8e-2  # more rows: the product, x Aᵀ and the sum are rounded each
                close = {"rtol": 1e-5, "atol": 2e-4} if dtype is torch.float32 else {"rtol": 1e-2, "atol": far}
                torch.testing.assert_close(y.double(), F.linear(x.double(), W, bias.double()), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_packed_product_decodes_coded_scales_to_the_bit(level, dtype):
    for n, k, block in ((37, 48, 64), (530, 64, 32), (9, 1200, 16), (300, 320, 64)):
        codes, table = ops.encode4(weights(n, k), NF4, block)[0], weights(256).sort().values
        count = -(-n * k // block)
        coded = torch.randint(0, 256, (count,), dtype=torch.uint8)
        nested = (table, weights(-(-count // ops.NESTED)).abs(), torch.tensor(0.4))
        scales = ops.plain_decode_scales(coded, *nested, ops.NESTED)
        for rows in (1, 5, 20):
            given = weights(rows, k, dtype=dtype), codes
            for bias in (None, weights(n), weights(n, dtype=torch.bfloat16)):
                rest = NF4, block, (n, k), bias, None, None, 0.0
                y = ops.native["linear4"](*given, coded, *rest, nested)
                assert torch.equal(y, ops.native["linear4"](*given, scales, *rest))
                assert torch.equal(y, ops.linear4(*given, coded, *rest, nested))
        assert ops.native["linear4"](*given, coded[:-1], *rest, nested) is NotImplemented
        assert ops.native["linear4"](*given, coded, *rest, (table[1:], *nested[1:])) is NotImplemented
        assert ops.native["linear4"](*given, scales, *rest, nested) is NotImplemented


@torch.no_grad()
def test_the_product_of_few_rows_with_a_weight_as_it_is(level):
    close = {"rtol": 1e-2, "atol": 2e-2}
    for n, k in ((1, 1), (21, 48), (8, 63), (100, 1200), (2051, 96)):
        W = weights(n, k, dtype=torch.bfloat16, seed=k) / k**0.5
        A, B = weights(4, k, seed=1) / k**0.5, weights(n, 4, dtype=torch.bfloat16, seed=2)
        for rows in (1, 3, 8):
            x, bias = weights(2, rows, k, dtype=torch.bfloat16)[:1], weights(n, dtype=torch.bfloat16)
            y = ops.native["linear"](x, W, bias)
            torch.testing.assert_close(y.double(), F.linear(x.double(), W.double(), bias.double()), **close)
            y = ops.native["linear"](x, W, None, A, B, 0.7)
            both = W.double() + 0.7 * B.double() @ A.double()
            torch.testing.assert_close(y.double(), F.linear(x.double(), both), **close)
    few = native_linear.most_rows(torch.float32)
    W32, x32 = weights(100, 1200), weights(1, few, 1200)
    assert ops.native["linear"](x32, W32, None) is NotImplemented  # torch's sums, to the bit
    with native_linear.any_order():
        y = ops.native["linear"](x32, W32, None)
        torch.testing.assert_close(y.double(), F.linear(x32.double(), W32.double()), rtol=1e-5, atol=1e-4)
        assert ops.native["linear"](weights(few + 1, 1200), W32, None) is NotImplemented
    linear = ops.native["linear"]
    many = weights(9, k, dtype=torch.bfloat16)
    for bad in ((weights(1, 64), W), (x[..., :-1], W), (many, W), (x, W.float()), (x, W.t())):
        assert linear(*bad, None) is NotImplemented
    with torch.enable_grad():
        assert linear(x, W.clone().requires_grad_(), None) is NotImplemented


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_stack_of_adapters(level, dtype):
    """Against each row's own matrices in float64; a row that is not named keeps its answer."""
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 2e-2}
    for n, k, rank, tokens in ((1, 1, 1, 1), (21, 48, 3, 2), (96, 63, 8, 1), (40, 1200, 17, 3)):
        A, B = weights(4, rank, k, dtype=dtype, seed=1) / k**0.5, weights(4, rank, n, dtype=dtype, seed=2)
        x, y = weights(6, tokens, k, dtype=dtype, seed=3), weights(6, tokens, n, dtype=dtype, seed=4)
        at, of, before = torch.tensor([4, 0, 1, 5]), torch.tensor([3, 0, 0, 2]), y.clone()
        assert ops.native["bank"](x, y, A, B, at, of) is y
        expected = before.double()
        expected[at] += x[at].double() @ A[of].double().mT @ B[of].double()
        torch.testing.assert_close(y.double(), expected, **close)
        assert torch.equal(y[[2, 3]], before[[2, 3]])
    for bad in ((x.half(), y, A, B), (x, y.double(), A, B), (x, y, A.mT, B), (x, y, A, B[:, :, ::2]),
                (x, y[..., :-1].contiguous(), A, B), (x[..., :-1].contiguous(), y, A, B)):  # fmt: skip
        assert ops.native["bank"](*bad, at, of) is NotImplemented


@torch.no_grad()
def test_what_a_product_remembers_of_a_weight_follows_the_weight():
    """Codes changed in place, put elsewhere, taken by a narrower tensor, and freed with another in their place."""
    if native.load().level is None:
        pytest.skip(native.load().reason)
    x = weights(1, 64)

    def y(codes, absmax, n=8):
        return ops.native["linear4"](x, codes, absmax, NF4, 64, (n, 64), None, None, None, 0.0)

    one, other = (ops.encode4(weights(8, 64, seed=seed), NF4, 64) for seed in (1, 2))
    before, expected = y(*one), y(*other)
    assert not torch.equal(before, expected)
    one[0].copy_(other[0])
    one[1].data = other[1].clone()
    assert torch.equal(y(*one), expected)
    assert y(one[0], one[1][:-1]) is NotImplemented
    assert y(*one, n=9) is NotImplemented
    one[0].data = other[0][:-1]
    assert y(*one) is NotImplemented
    for seed in range(20):
        codes, absmax = ops.encode4(weights(8, 64, seed=seed), NF4, 64)
        W = ops.decode4(codes, absmax, NF4, 64, (8, 64), torch.float32)
        torch.testing.assert_close(y(codes, absmax), F.linear(x, W))
    held = len(native_linear.frames)
    del codes, absmax
    assert len(native_linear.frames) == held - 1


@torch.no_grad()
def test_which_products_native_code_serves():
    codes, absmax = ops.encode4(weights(8, 64), NF4, 64)
    linear = ops.native["linear4"]
    if native.load().level:
        assert linear(weights(2, 3, 64), codes, absmax, NF4, 64, (8, 64), None, None, None, 0.0).shape == (2, 3, 8)
    for x in (weights(65, 64), weights(2, 64).double(), weights(0, 64), weights(2, 32)):
        assert linear(x, codes, absmax, NF4, 64, (8, 64), None, None, None, 0.0) is NotImplemented
    with torch.enable_grad():
        x = weights(2, 64).requires_grad_()
        ops.linear4(x, codes, absmax, NF4, 64, (8, 64), None, None, None, 0.0).sum().backward()
    torch.testing.assert_close(x.grad, ops.decode4(codes, absmax, NF4, 64, (8, 64), torch.float32).sum(0).expand(2, 64))


# --- as operations of torch


@pytest.mark.parametrize("name", sorted(calls()))
def test_opcheck(name):
    args = [list(a) if type(a) is tuple else a for a in calls()[name]]
    torch.library.opcheck(getattr(torch.ops.featherweight, name).default, tuple(args))


@pytest.mark.parametrize("name", sorted(calls()))
def test_a_compiled_graph_holds_the_operation_whole(name):
    seen = []

    def keep(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    fn, args = getattr(ops, name), calls()[name]
    with torch.no_grad():
        found, expected = torch.compile(fn, backend=keep, fullgraph=True)(*args), fn(*args)
    assert any(f"featherweight.{name}" in target for target in seen)
    for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (found, expected)), strict=True):
        assert same(a, b)


def test_modes_see_the_operation_and_maps_the_plain_definition():
    args = calls()["decode4"]
    with FlopCounterMode(display=False):
        assert torch.equal(ops.decode4(*args), ops.plain_decode4(*args))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = ops.decode4(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args))
        assert (fake.shape, fake.dtype) == ((6, 32), torch.bfloat16)
    x = weights(3, 4, 32)
    codes, _ = torch.vmap(ops.quantize_rows)(x)
    assert torch.equal(codes[1], ops.quantize_rows(x[1])[0])
    assert ops.decode4(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args)).is_meta


@torch.no_grad()
def test_products_count_their_work():
    """2 m n k, and the low rank's, whoever computes; m 6, n 6, k 32, r 4."""
    for name, low in (("linear4", 4), ("linear8", 0), ("linear", 4)):
        with FlopCounterMode(display=False) as counter:
            getattr(torch.ops.featherweight, name)(*calls()[name])
        assert counter.get_total_flops() == 2 * 6 * (6 * 32 + low * (6 + 32)), name


def test_packed_tensors_that_are_too_small_are_never_read_past_their_end(level):
    codes, absmax = ops.encode4(weights(8, 64), NF4, 64)
    for bad in ((codes[:-1], absmax, NF4), (codes, absmax[:-1], NF4), (codes, absmax, NF4[:15])):
        assert ops.native["decode4"](*bad, 64, (8, 64), torch.float32) is NotImplemented
        assert ops.native["linear4"](weights(1, 64), *bad, 64, (8, 64), None, None, None, 0.0) is NotImplemented
    with pytest.raises((RuntimeError, IndexError)):
        ops.decode4(codes[:-1], absmax, NF4, 64, (8, 64), torch.float32)


# --- the buffer of decoded weights


@pytest.mark.skipif(native.load().level is None, reason="the buffer is for native code")
def test_the_scratch_is_one_buffer_and_never_taken_twice():
    codes, absmax = ops.encode4(weights(256, 256), NF4, 64)

    def decode():
        return ops.decode4(codes, absmax, NF4, 64, (256, 256), torch.float32)

    with torch.no_grad():
        with scratch():
            first, second = decode(), decode()
            with scratch():
                nested = decode()
        with scratch():
            again = decode()
        outside = decode()
    with scratch():
        recorded = decode()
    at = [t.data_ptr() for t in (first, second, nested, outside, recorded)]
    assert len(set(at)) == 5
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(second, outside)
    release()
    assert torch.equal(first, outside)


# --- what is there, and what is said where it is not


def test_available_names_the_level_or_the_reason():
    found, reason = native.available()
    assert reason.startswith(native.load().level) if found else reason


@pytest.mark.parametrize(
    ("asked", "said"), [("off", "switched off"), ("avx1024", "no such level"), ("SCALAR", "scalar on")]
)
def test_the_variable(asked, said):
    if asked == "SCALAR" and not native.PATH.exists():
        pytest.skip(native.load().reason)
    code = (
        "import torch, featherweight.kernels\n"
        "from featherweight.kernels import native\n"
        "from featherweight.quant import ops\n"
        "codes, absmax = ops.encode4(torch.tensor([1.0, -1.0]), torch.linspace(-1, 1, 16), 64)\n"
        "assert codes.tolist() == [240] and absmax.tolist() == [1.0]\n"
        "print(native.available()[1])"
    )
    env = os.environ | {"FEATHERWEIGHT_NATIVE": asked, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert said in done.stdout + done.stderr
    assert done.returncode == (asked == "avx1024")


def test_a_library_that_is_missing_or_broken_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("FEATHERWEIGHT_NATIVE", raising=False)
    for content, said in ((None, "no C++ compiler"), (b"not a library", "cannot be loaded")):
        monkeypatch.setattr(native, "PATH", tmp_path / "_native.so")
        if content:
            native.PATH.write_bytes(content)
        native.load.cache_clear()
        try:
            assert native.load().level is None
            assert said in native.available()[1]
        finally:
            native.load.cache_clear()


@pytest.mark.skipif(native.load().level is None, reason="needs the library")
def test_work_is_shared_on_torchs_own_pool():
    """No OpenMP of its own: the library needs none, and gets torch's by address."""
    needed = subprocess.run(["ldd", str(native.PATH)], capture_output=True, text=True).stdout
    assert "omp" not in needed
    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        assert native.load().threads


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source tree")
def test_an_installation_without_a_compiler_succeeds(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    env = os.environ | {"PATH": str(empty), "CXX": ""}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp",
               str(tmp_path / "temp")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler" in done.stderr + done.stdout
    assert not list((tmp_path / "lib").rglob("*.so"))
