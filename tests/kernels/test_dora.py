import pytest
import torch
from torch import nn
from torch.nn import functional as F

import featherweight as fw
from featherweight.kernels.dora import decomposed_linear
from featherweight.kernels.lora import lowrank_linear


def case(dtype=torch.float64, shape=(2, 5)):
    torch.manual_seed(0)
    x, W, b = torch.randn(*shape, 6), torch.randn(7, 6), torch.randn(7)
    A, B, c = torch.randn(3, 6), torch.randn(7, 3), torch.randn(7)
    x, W, b, A, B, c = (t.to(dtype) for t in (x, W, b, A, B, c))
    return x.requires_grad_(), W, b.requires_grad_(), A.requires_grad_(), B.requires_grad_(), c.requires_grad_()


def plain(x, W, b, A, B, c, scale):
    return c * (F.linear(x, W) + scale * F.linear(F.linear(x, A), B)) + b


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias):
    x, W, b, A, B, c = case()

    def f(x, A, B, c, *b):
        return decomposed_linear(x, W, b[0] if b else None, A, B, c, 1.7)

    assert torch.autograd.gradcheck(f, (x, A, B, c, *([b] if bias else [])))


@pytest.mark.parametrize("shape", [(), (4,), (2, 5), (2, 3, 4), (0,)])
def test_equals_the_plain_equation_for_any_leading_shape(shape):
    x, W, b, A, B, c = case(shape=shape)
    y = decomposed_linear(x, W, b, A, B, c, 0.5)
    assert y.shape == (*shape, 7)
    torch.testing.assert_close(y, plain(x, W, b, A, B, c, 0.5))
    with torch.no_grad():
        assert torch.equal(decomposed_linear(x, W, b, A, B, c, 0.5), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_every_row_as_long_as_before_it_is_lora_bit_for_bit(dtype):
    x, W, b, A, B, _ = case(dtype, (8, 16))
    A, B, ones = A.detach().float(), B.detach().float(), torch.ones(7)
    assert torch.equal(decomposed_linear(x, W, b, A, B, ones, 0.5), lowrank_linear(x, W, b, A, B, 0.5))
    assert not torch.equal(decomposed_linear(x, W, b, A, B, ones * 1.05, 0.5), lowrank_linear(x, W, b, A, B, 0.5))


def test_float32_adapters_on_a_bfloat16_base():
    x, W, b, A, B, c = case(torch.bfloat16, (8, 16))
    A, B, c = (t.detach().float().requires_grad_() for t in (A, B, c))
    y = decomposed_linear(x, W, b, A, B, c, 0.5)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == b.grad.dtype == torch.bfloat16
    assert A.grad.dtype == B.grad.dtype == c.grad.dtype == torch.float32
    wide = [t.detach().float().requires_grad_() for t in (x, W, b, A, B, c)]
    plain(*wide, 0.5).sum().backward()
    torch.testing.assert_close(A.grad, wide[3].grad, rtol=2e-2, atol=0.5)
    torch.testing.assert_close(c.grad, wide[5].grad, rtol=2e-2, atol=0.5)


def test_autocast():
    x, W, b, A, B, c = case(torch.float32, (8, 16))
    with torch.autocast("cpu", torch.bfloat16):
        y = decomposed_linear(x, W, b, A, B, c, 0.5)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in (x, b, A, B, c))


def test_the_output_may_be_changed_in_place():
    x, W, b, A, B, c = case()
    y = decomposed_linear(x, W, b, A, B, c, 1.0)
    y += 1
    y.mul_(2).sum().backward()
    assert torch.equal(b.grad, torch.full_like(b, 20))


def test_a_second_derivative_and_a_weight_that_trains_are_refused():
    x, W, b, A, B, c = case()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(decomposed_linear(x, W, b, A, B, c, 1.0).sum(), x, create_graph=True)
    with pytest.raises(ValueError, match="must be frozen"):
        decomposed_linear(x, W.requires_grad_(), b, A, B, c, 1.0)


def test_saves_one_dense_tensor_beside_its_inputs():
    x, W, b, A, B, c = case(torch.float32, (8, 8))
    inputs, extra = {t.untyped_storage().data_ptr() for t in (x, W, b, A, B, c)}, {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in inputs:
            extra[t.untyped_storage().data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = decomposed_linear(x, W, b, A, B, c, 1.0)
    assert y.grad_fn is not None
    assert sum(extra.values()) == 64 * 3 * 4 + 64 * 7 * 4  # h (n, r) and v (n, out)


def test_compiles_to_one_graph():
    x, W, b, A, B, c = case(torch.float32)

    def f(x):
        return decomposed_linear(x, W, b, A, B, c, 1.5)

    torch._dynamo.reset()
    results = []
    for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        y = g(x)
        y.pow(2).sum().backward()
        results.append((y.detach(), A.grad.clone(), x.grad.clone(), c.grad.clone()))
        A.grad = x.grad = c.grad = None
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("init", ["kaiming", "pissa"])
def test_law_kernel_equals_plain_path_in_a_model(llama, agrees, dtype, init):
    model = fw.attach(llama(dtype), fw.DoRA(rank=4, targets="linear", init=init))
    torch.manual_seed(7)
    for name, p in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            p.data.add_(0.05 * torch.randn_like(p))
    agrees(model, dtype, trained=42)


def test_a_biased_layer_with_dropout_takes_the_plain_path():
    """And its mean over many masks is what it gives without."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 8))
    fw.attach(model, fw.DoRA(rank=4, targets="0", dropout=0.3))
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.1 * torch.randn_like(p))
    x = torch.randn(64, 32)
    model.eval()
    exact = model(x)
    model.train()
    noisy = torch.stack([model(x) for _ in range(400)])
    assert not torch.equal(noisy[0], noisy[1])
    assert (noisy.mean(0) - exact).abs().mean() < 0.05 * exact.abs().mean()
