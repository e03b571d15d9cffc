"""LoRA over codes in one pass, against the plain adapter over the decoded weight."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import featherweight as fw
from featherweight.core import fused
from featherweight.kernels import native
from featherweight.kernels.qlora import lowrank_coded, serve
from featherweight.methods.lowrank import LowRank
from featherweight.quant import NF4, Absmax, LLMInt8, QuantLinear
from featherweight.quant.quantized import become_quantized
from featherweight.quant.scheme import Scheme
from featherweight.quant.scratch import lender

SCHEMES = [NF4(), NF4(block=32, double=True), Absmax(), LLMInt8(threshold=0.0, backward="exact")]
WIDE, OUT, RANK = 80, 40, 3


def case(scheme, dtype=torch.float32, rows=(2, 9)):
    torch.manual_seed(0)
    x, W, b = torch.randn(*rows, WIDE), torch.randn(OUT, WIDE), torch.randn(OUT)
    A, B = torch.randn(RANK, WIDE) / 9, torch.randn(OUT, RANK)
    packed = scheme.encode(W)
    return *(t.to(dtype).requires_grad_() for t in (x, b, A, B)), packed, scheme.decode(packed, (OUT, WIDE), dtype)


def gradients(y, *inputs):
    weights = torch.linspace(-1, 1, y.numel()).to(y.dtype).view(y.shape)
    return torch.autograd.grad((y * weights).sum(), inputs)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if not isinstance(s, LLMInt8)], ids=repr)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_values_and_gradients_are_those_of_the_dense_kernel(scheme, dropout):
    from featherweight.kernels.lora import lowrank_linear

    x, b, A, B, packed, W = case(scheme)
    torch.manual_seed(1)
    mine = lowrank_coded(x, packed, scheme, (OUT, WIDE), b, A, B, 0.7, dropout)
    torch.manual_seed(1)
    theirs = lowrank_linear(x, W, b, A, B, 0.7, dropout)
    torch.testing.assert_close(mine, theirs)
    for one, other in zip(gradients(mine, x, b, A, B), gradients(theirs, x, b, A, B), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(), (4,), (2, 5), (70,), (0,)])
def test_any_leading_shape_and_bias_or_none(shape):
    scheme = NF4()
    x, b, A, B, packed, W = case(scheme, rows=shape)
    for bias in (b, None):
        y = lowrank_coded(x, packed, scheme, (OUT, WIDE), bias, A, B, 0.5)
        assert y.shape == (*shape, OUT)
        torch.testing.assert_close(y, F.linear(x, W, bias) + 0.5 * x @ A.t() @ B.t(), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(
                lowrank_coded(x, packed, scheme, (OUT, WIDE), bias, A, B, 0.5), y, rtol=1e-5, atol=1e-5
            )


def model(scheme, bias=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDE, OUT, bias=bias), nn.Linear(OUT, 8))
    for layer in net:
        become_quantized(layer, scheme, scheme.encode(layer.weight))
    fw.attach(net, fw.LoRA(rank=RANK, targets="[01]"))
    for layer in net:
        nn.init.normal_(layer.adapters["default"].lora_B.weight, std=0.1)
    return net


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_a_model_gives_what_it_gives_without_the_kernel(scheme, monkeypatch):
    net, x = model(scheme), torch.randn(3, WIDE, requires_grad=True)
    trained = [p for p in net.parameters() if p.requires_grad]
    assert len(trained) == 4
    assert fused.kernels[LowRank, QuantLinear] is serve
    fast = net(x)
    mine = gradients(fast, x, *trained)
    monkeypatch.delitem(fused.kernels, (LowRank, QuantLinear))
    plain = net(x)
    torch.testing.assert_close(fast, plain)
    for one, other in zip(mine, gradients(plain, x, *trained), strict=True):
        torch.testing.assert_close(one, other)


def test_a_scheme_with_a_linear_of_its_own_is_left_alone():
    calls = []

    class Own(NF4):
        def linear(self, x, packed, shape, bias):
            calls.append(shape)
            return super().linear(x, packed, shape, bias)

    net = model(Own())
    net(torch.randn(2, WIDE))
    assert calls == [(OUT, WIDE), (8, OUT)]
    assert Own.linear is not Scheme.linear


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_codes_alone_are_kept_of_the_weight(dropout):
    scheme = NF4(double=True)
    x, b, A, B, packed, _ = case(scheme, torch.bfloat16, (64,))
    A, B = (t.detach().float().requires_grad_() for t in (A, B))
    inputs = {t.untyped_storage().data_ptr() for t in (x, b, A, B, *packed.values())}
    extra = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in inputs:
            extra[t.untyped_storage().data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = lowrank_coded(x, packed, scheme, (OUT, WIDE), b, A, B, 1.0, dropout)
    assert y.dtype == torch.bfloat16
    assert sum(extra.values()) == 64 * RANK * 2 + (64 * WIDE * 2 if dropout else 0)  # h in bf16, m in int16


def test_bf16_and_autocast():
    scheme = NF4()
    x, b, A, B, packed, W = case(scheme, torch.float32, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        y = lowrank_coded(x, packed, scheme, (OUT, WIDE), b, A, B, 1.0)
    assert y.dtype == torch.bfloat16
    plain = F.linear(x, W, b) + x @ A.t() @ B.t()
    torch.testing.assert_close(y.float(), plain, rtol=3e-2, atol=0.2)
    for one, other in zip(gradients(y, x, b, A, B), gradients(plain.bfloat16(), x, b, A, B), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_gradients_are_the_same_bits_before_and_after_an_evaluation():
    net, x = model(NF4(double=True)), torch.randn(5, WIDE, requires_grad=True)
    before = gradients(net(x), x, *(p for p in net.parameters() if p.requires_grad))
    net.eval()
    with torch.no_grad():
        net(x[:1])
    net.train()
    after = gradients(net(x), x, *(p for p in net.parameters() if p.requires_grad))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_checkpointing_and_compiling():
    from torch.utils.checkpoint import checkpoint

    net, x = model(NF4(double=True)), torch.randn(5, WIDE, requires_grad=True)
    trained = [p for p in net.parameters() if p.requires_grad]
    expected = gradients(net(x), x, *trained)
    for again in (
        gradients(checkpoint(net, x, use_reentrant=False), x, *trained),
        gradients(torch.compile(net, backend="aot_eager", fullgraph=True)(x), x, *trained),
    ):
        for one, other in zip(again, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.skipif(native.load().level is None, reason="the buffer is for native code")
def test_threads_have_buffers_of_their_own():
    """Forward and backward in four threads at once give what they give alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    for layer in net:
        become_quantized(layer, NF4(), NF4().encode(layer.weight + torch.randn(()).item()))
    fw.attach(net, fw.LoRA(rank=2, targets="[01]"))
    xs = [torch.randn(70, 512) for _ in range(4)]
    alone = [gradients(net(x.requires_grad_()), x)[0] for x in xs]
    found, buffers = {}, {}

    def run(i):
        for _ in range(5):
            x = xs[i].detach().requires_grad_()
            found[i] = gradients(net(x), x)[0]
        buffers[i] = lender.buffer.data_ptr()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(buffers.values())) == 4
    for i, expected in enumerate(alone):
        torch.testing.assert_close(found[i], expected)


def test_the_output_may_be_changed_in_place_and_a_second_derivative_is_refused():
    x, b, A, B, packed, _ = case(NF4())
    y = lowrank_coded(x, packed, NF4(), (OUT, WIDE), b, A, B, 1.0)
    y += 1
    y.mul_(2).sum().backward()
    assert torch.equal(b.grad, torch.full_like(b, 36))
    y = lowrank_coded(x, packed, NF4(), (OUT, WIDE), b, A, B, 1.0)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("rows", [(), (1, 1), (8,), (3, 3)], ids=str)
def test_few_rows_without_gradients_take_the_adapters_dtype_and_come_to_the_same(rows):
    x, b, A, B, packed, _ = case(NF4(double=True), torch.bfloat16, rows)
    A, B = (t.detach().float().requires_grad_() for t in (A, B))
    y = lowrank_coded(x, packed, NF4(double=True), (OUT, WIDE), b, A, B, 1.7)
    with torch.no_grad():
        z = lowrank_coded(x, packed, NF4(double=True), (OUT, WIDE), b, A, B, 1.7)
    assert z.dtype == torch.bfloat16
    assert z.shape == y.shape
    torch.testing.assert_close(z, y, rtol=2e-2, atol=0.1)
