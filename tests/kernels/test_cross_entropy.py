import pytest
import torch
from torch.nn import functional as F

from featherweight.kernels import cross_entropy
from featherweight.kernels.cross_entropy import linear_cross_entropy


def case(dtype=torch.float64, n=10, d=6, V=23):
    torch.manual_seed(0)
    h, W, b = torch.randn(n, d).to(dtype), torch.randn(V, d).to(dtype), torch.randn(V).to(dtype)
    labels = torch.randint(V, (n,))
    labels[::4] = -100
    return h.requires_grad_(), W, labels, b


@pytest.mark.parametrize("chunk", [1, 3, 10, 64, None])
def test_gradcheck_in_any_chunks(chunk):
    h, W, labels, b = case()
    W, b = W.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, W, b: linear_cross_entropy(h, W, labels, b, chunk), (h, W, b))


@pytest.mark.parametrize("head", ["frozen", "trains"])
def test_equals_torch_in_float32(head):
    h, W, labels, b = case(torch.float32, 300, 32, 1000)
    W, b = W.requires_grad_(head == "trains"), b.requires_grad_(head == "trains")
    wanted = [h, W, b] if head == "trains" else [h]
    loss = linear_cross_entropy(h, W, labels, b, 64)
    expected = F.cross_entropy(F.linear(h, W, b), labels, reduction="sum")
    assert abs(loss.item() / expected.item() - 1) < 1e-6
    for mine, theirs in zip(
        torch.autograd.grad(loss * 3, wanted), torch.autograd.grad(expected * 3, wanted), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-5)


def test_bfloat16_sums_in_float32():
    h, W, labels, _ = case(torch.bfloat16, 4000, 16, 50)
    loss = linear_cross_entropy(h, W, labels, chunk=100)
    expected = F.cross_entropy((h.double() @ W.double().t()), labels, reduction="sum")
    assert loss.dtype == torch.float32
    assert abs(loss.item() / expected.item() - 1) < 1e-3
    loss.backward()
    assert h.grad.dtype == torch.bfloat16


def test_autocast():
    h, W, labels, b = case(torch.float32, 64, 16, 50)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(h, W, labels, b)
    assert loss.dtype == torch.float32
    loss.backward()
    assert h.grad.dtype == torch.float32
    expected = F.cross_entropy(F.linear(h, W, b), labels, reduction="sum")
    assert abs(loss.item() / expected.item() - 1) < 1e-2


def test_never_holds_all_logits():
    n, d, V, chunk = 64, 8, 512, 4
    h, W, labels, _ = case(torch.float32, n, d, V)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [largest] + [t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
            )
            return out

    with Watch():
        linear_cross_entropy(h, W, labels, chunk=chunk).backward()
    assert largest == max(chunk * V, V * d)


def test_no_position_carries_loss():
    h, W, labels, b = case()
    loss = linear_cross_entropy(h, W, torch.full_like(labels, -100), b)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(h.grad, torch.zeros_like(h))


def test_without_grad_no_gradient_is_formed():
    h, W, labels, b = case()
    with torch.no_grad():
        loss = linear_cross_entropy(h, W, labels, b)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(h, W, b), labels, reduction="sum"))


def test_compiles_to_one_graph():
    h, W, labels, b = case()
    torch._dynamo.reset()
    compiled = torch.compile(lambda h: linear_cross_entropy(h, W, labels, b, 4), fullgraph=True, backend="aot_eager")
    loss = compiled(h)
    (mine,) = torch.autograd.grad(loss, h)
    expected = linear_cross_entropy(h, W, labels, b, 4)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(mine, torch.autograd.grad(expected, h)[0])


def test_wrong_shapes_are_named():
    h, W, labels, b = case()
    with pytest.raises(ValueError, match=r"got \(10, 6\) and \(9,\)"):
        linear_cross_entropy(h, W, labels[:-1], b)


def test_the_softmax_in_float32_is_held_a_slice_at_a_time(monkeypatch):
    monkeypatch.setattr(cross_entropy, "SLICE", 3 * 512)
    h, W, labels, _ = case(torch.bfloat16, 64, 8, 512)
    wide = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal wide
            out = func(*args, **(kwargs or {}))
            found = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
            wide = max([wide, *(t.numel() for t in found if t.dtype is torch.float32)])
            return out

    with Watch():
        mine = linear_cross_entropy(h, W, labels, chunk=32)
    assert wide == 3 * 512
    (sliced,) = torch.autograd.grad(mine, h)
    monkeypatch.undo()
    whole = linear_cross_entropy(h, W, labels, chunk=32)
    torch.testing.assert_close(mine, whole, rtol=1e-6, atol=0)
    assert torch.equal(sliced, torch.autograd.grad(whole, h)[0])
