"""LLM.int8(): the paper's equation by hand, its synthetic outliers, its limits, a model with outliers, bitsandbytes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import featherweight as fw
from featherweight.quant import LLMInt8, int8
from featherweight.quant.quantized import become_quantized


def far(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def synthetic():
    """The reference's layer: three features sixty times the others."""
    torch.manual_seed(0)
    W, x = torch.randn(256, 512) * 0.02, torch.randn(64, 512)
    x[:, [7, 100, 300]] *= 60
    return W, x


def seen(scheme, x):
    watch = scheme.watch(x.shape[1])
    for piece in x.split(10):
        watch.add(piece)
    return watch


def through(scheme, W, x, bias=None, data=None):
    packed = scheme.encode(W, data)
    return scheme.linear(x, packed, tuple(W.shape), bias)


def test_a_product_by_hand():
    """Rows (2, -4) and (1, 10) of x with threshold 6: feature 1 is an outlier, feature 0 is quantized."""
    W = torch.tensor([[127.0, 64.0], [-254.0, 2.0]])
    scheme = LLMInt8()
    packed = scheme.encode(W)
    assert packed["codes"].tolist() == [[127, 64], [-127, 1]]
    assert packed["absmax"].tolist() == [127.0, 254.0]
    x = torch.tensor([[2.0, -4.0], [1.0, 10.0]])
    y = scheme.linear(x, packed, (2, 2), torch.tensor([1.0, 0.0]))
    assert y.tolist() == [[2 * 127 - 4 * 64 + 1, -2 * 254 - 4 * 2], [127 + 640 + 1, -254 + 20]]


def test_the_error_on_synthetic_outliers(synthetic):
    W, x = synthetic
    assert far(through(LLMInt8(threshold=0), W, x), x @ W.T) == pytest.approx(4.4e-2, rel=0.02)
    assert far(through(LLMInt8(), W, x), x @ W.T) == pytest.approx(7.6e-3, rel=0.02)
    kept = LLMInt8(keep=3)
    assert far(through(kept, W, x, data=seen(kept, x)), x @ W.T) == pytest.approx(2.2e-3, rel=0.03)
    assert kept.encode(W, seen(kept, x))["columns"].tolist() == [7, 100, 300]


def test_the_ends_of_the_threshold(synthetic):
    W, x = synthetic
    plain = through(LLMInt8(threshold=0), W, x)
    assert torch.equal(through(LLMInt8(threshold=float(x.abs().max()) + 1), W, x), plain)
    low = LLMInt8(threshold=1e-30)
    decoded = low.decode(low.encode(W), (256, 512), torch.float32)
    torch.testing.assert_close(through(low, W, x), x @ decoded.T, rtol=1e-5, atol=1e-5)


def test_bitsandbytes_multiplies_as_we_do(synthetic):
    """Its CPU path, which computes in 16 bits: no threshold, and 6."""
    bnb = pytest.importorskip("bitsandbytes")
    W, x = synthetic
    for threshold in (0.0, 6.0):
        state = bnb.MatmulLtState()
        state.threshold, state.has_fp16_weights, state.is_training = threshold, False, False
        state.CB, state.SCB, _ = bnb.functional.int8_vectorwise_quant(W.half())
        theirs = bnb.matmul(x.half(), W.half(), state=state).float()
        packed = {"codes": state.CB, "absmax": state.SCB.float()}
        ours = LLMInt8(threshold=threshold).linear(x.half(), packed, (256, 512), None).float()
        assert far(ours, theirs) < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backward", ["int8", "exact"])
@pytest.mark.parametrize("keep", [0, 2])
def test_the_gradient_is_that_of_the_decoded_weight(synthetic, dtype, backward, keep):
    W, x = synthetic
    scheme = LLMInt8(backward=backward, keep=keep)
    packed = scheme.encode(W, seen(scheme, x))
    x = x.to(dtype, copy=True).requires_grad_()
    b = torch.zeros(256, dtype=dtype, requires_grad=True)
    g = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    scheme.linear(x, packed, (256, 512), b).backward(g)
    expected = g.double() @ scheme.decode(packed, (256, 512), torch.float64)
    rounding = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 4e-3)
    assert far(x.grad.double(), expected) < (9e-3 if backward == "int8" else rounding)
    assert far(b.grad.double(), g.double().sum(0)) < 4e-3
    assert x.grad.dtype == dtype


def test_small_gradients_in_half_precision_do_not_vanish():
    W = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 1e-4
    scheme = LLMInt8()
    x = torch.randn(5, 30).half().requires_grad_()
    scheme.linear(x, scheme.encode(W), (40, 30), None).backward(torch.full((5, 40), 2e-3).half())
    assert far(x.grad.float(), torch.full((5, 40), 2e-3) @ W) < 0.1


@pytest.mark.parametrize("n", [0, 1, 2, 17])
@pytest.mark.parametrize(("out", "into"), [(1, 1), (3, 5), (7, 48), (96, 33), (200, 1200)])
def test_every_shape(n, out, into):
    torch.manual_seed(n + out)
    W, x, b = torch.randn(out, into), torch.randn(2, n, into, requires_grad=True), torch.randn(out)
    scheme = LLMInt8(threshold=2.5)
    packed = scheme.encode(W)
    assert {k: (t.dtype, tuple(t.shape)) for k, t in packed.items()} == scheme.layout((out, into))
    y = scheme.linear(x, packed, (out, into), b)
    assert y.shape == (2, n, out)
    y.sum().backward()
    assert x.grad.shape == x.shape
    error = (scheme.decode(packed, (out, into), torch.float32) - W).abs()
    assert (error <= scheme.bound(W) * (1 + 1e-5)).all()
    if n:
        assert (y - F.linear(x, W, b)).abs().max() < 0.02 * W.abs().max() * into**0.5 * 4


def test_a_sum_too_long_for_int32():
    """All codes at their ends, twice the length that is sure: the sum does not wrap round."""
    n = 2 * int8.EXACT
    ones = torch.full((1, n), 127, dtype=torch.int8)
    assert int(int8.int_mm(ones, ones.T)) == pytest.approx(127**2 * n, rel=1e-6)


@pytest.mark.parametrize("shape", [(6,), (3, 4, 5), (2, 3, 2, 2)])
def test_tensors_that_are_no_matrix(shape):
    W = torch.randn(shape)
    scheme = LLMInt8()
    packed = scheme.encode(W)
    again = scheme.encode(scheme.decode(packed, shape, torch.float32))
    assert torch.equal(again["codes"], packed["codes"])
    assert {k: (t.dtype, tuple(t.shape)) for k, t in packed.items()} == scheme.layout(shape)
    assert ((scheme.decode(packed, shape, torch.float32) - W).abs() <= scheme.bound(W) * (1 + 1e-5)).all()


def test_zeros_and_damage_stay_what_they_are():
    W = torch.randn(4, 8)
    W[1], W[2, 3] = 0, float("nan")
    scheme = LLMInt8()
    packed = scheme.encode(W)
    decoded = scheme.decode(packed, (4, 8), torch.float32)
    assert (decoded[1] == 0).all()
    assert decoded[2].isnan().all()
    assert decoded[[0, 1, 3]].isfinite().all()
    x = torch.randn(3, 8)
    x[1, 2] = float("nan")
    y = scheme.linear(x, packed, (4, 8), None)
    assert y[1].isnan().all()
    assert y[[0, 2]][:, [0, 1, 3]].isfinite().all()
    x[1, 2] = float("inf")
    assert not scheme.linear(x, packed, (4, 8), None)[1].isfinite().any()


def test_compiles_whole_with_and_without_outliers(synthetic):
    W, x = synthetic
    for scheme in (LLMInt8(), LLMInt8(keep=2)):
        packed = scheme.encode(W, seen(scheme, x))
        torch._dynamo.reset()

        def f(x, scheme=scheme, packed=packed):
            return scheme.linear(x, packed, (256, 512), None)

        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        for given in (x, x.clamp(-5, 5)):
            one, two = given.clone().requires_grad_(), given.clone().requires_grad_()
            y = compiled(one)
            torch.testing.assert_close(y, f(two))
            y.sum().backward()
            f(two).sum().backward()
            torch.testing.assert_close(one.grad, two.grad)
    torch.library.opcheck(int8.outlier_op, (x, packed["codes"], x.abs().amax(0) > 6))


def test_no_second_derivative_in_silence(synthetic):
    W, x = synthetic
    for scheme in (LLMInt8(), LLMInt8(backward="exact")):
        z = x[:3].clone().requires_grad_()
        y = scheme.linear(z, scheme.encode(W), (256, 512), None)
        weight = torch.ones_like(y, requires_grad=True)
        if scheme.backward == "int8":
            with pytest.raises(RuntimeError, match="second derivative"):
                torch.autograd.grad(y, z, weight, create_graph=True)
        else:
            (dx,) = torch.autograd.grad(y, z, weight, create_graph=True)
            assert torch.autograd.grad(dx.sum(), weight)[0].abs().sum() > 0


def test_bad_fields_are_named_all_at_once():
    with pytest.raises(fw.InputError) as error:
        LLMInt8(threshold=-1, backward="float", keep=-2)
    assert len(error.value.problems) == 3
    with pytest.raises(fw.InputError, match="calibrate"):
        LLMInt8(keep=1).encode(torch.ones(2, 2))
    with pytest.raises(fw.InputError, match="empty"):
        LLMInt8().encode(torch.ones(0, 2))
    assert repr(LLMInt8(threshold=5.0)) == "LLMInt8(threshold=5.0)"


@pytest.fixture(scope="session")
def stories(data_dir):
    """The real model, and 2,000 tokens of its own kind of text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(data_dir / "stories260k" / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "stories260k" / "hf")
    text = (data_dir / "tinystories_sample" / "tinystories.txt").read_text()[-20000:].replace("\n\n", "\n")
    tokens = [t for line in text.split("\n") for t in tokenizer(line)["input_ids"]]
    return model, torch.tensor(tokens[:2000]).view(10, 200)


def planted(model, factor=64.0, features=(3, 17, 40)):
    """Three features of every norm's output as outliers, taken back in the weights that read them: the same model."""
    model, at = copy.deepcopy(model), list(features)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[at] *= factor
                for reader in readers:
                    reader.weight[:, at] /= factor
    return model


def quantized(model, scheme, ids=None):
    """Every linear layer but the head, calibrated where the scheme asks for it."""
    model, watched = copy.deepcopy(model), {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    if scheme.calibrated:
        watched = {n: scheme.watch(m.in_features) for n, m in layers.items()}
        hooks = [m.register_forward_pre_hook(lambda _, x, n=n: watched[n].add(x[0][0])) for n, m in layers.items()]
        with torch.no_grad():
            model(ids)
        for hook in hooks:
            hook.remove()
    for name, module in layers.items():
        become_quantized(module, scheme, scheme.encode(module.weight.data, watched.get(name)))
    return model


def test_a_model_with_planted_outliers(stories):
    """Its own loss stays; plain int8 loses more than eight times what LLM.int8() does, which loses more than with kept
    columns.
    """
    model, ids = stories

    def loss(m):
        with torch.no_grad():
            return float(m(input_ids=ids, labels=ids).loss)

    own = loss(model)
    model = planted(model)
    assert loss(model) == pytest.approx(own, abs=1e-4)
    lost = {
        scheme: loss(quantized(model, scheme, ids[:1])) - own
        for scheme in (LLMInt8(threshold=0), LLMInt8(), LLMInt8(keep=3))
    }
    plain, separated, kept = lost.values()
    assert plain > 0.15
    assert plain > 6 * separated
    assert kept < 0.006


def test_trains_evaluates_and_trains_the_same(stories):
    model, ids = stories
    model = quantized(model, LLMInt8())
    fw.attach(model, fw.LoRA(rank=4, targets="linear"))
    codes = {n: b.clone() for n, b in model.named_buffers()}
    grads = []
    for _ in range(2):
        model.train()
        model.zero_grad()
        model(input_ids=ids[:2], labels=ids[:2]).loss.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        with torch.no_grad():
            model.eval()(ids[:2])
    assert grads[0]
    assert any(g.abs().sum() > 0 for g in grads[0].values())
    assert all(torch.equal(g, grads[1][n]) for n, g in grads[0].items())
    assert all(torch.equal(b, codes[n]) for n, b in model.named_buffers())
