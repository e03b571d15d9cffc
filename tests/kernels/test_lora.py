import pytest
import torch
from torch import nn
from torch.nn import functional as F

import featherweight as fw
from featherweight.core import fused
from featherweight.core.host import hosts
from featherweight.kernels.lora import lowrank_linear, serve
from featherweight.methods.lora import LowRank


def case(dtype=torch.float64, shape=(2, 5)):
    torch.manual_seed(0)
    x, W, b = torch.randn(*shape, 6), torch.randn(7, 6), torch.randn(7)
    A, B = torch.randn(3, 6), torch.randn(7, 3)
    x, W, b, A, B = (t.to(dtype) for t in (x, W, b, A, B))
    return x.requires_grad_(), W, b.requires_grad_(), A.requires_grad_(), B.requires_grad_()


def plain(x, W, b, A, B, scale):
    return F.linear(x, W, b) + scale * F.linear(F.linear(x, A), B)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(dropout, bias):
    x, W, b, A, B = case()

    def f(x, A, B, *b):
        torch.manual_seed(1)
        return lowrank_linear(x, W, b[0] if b else None, A, B, 1.7, dropout)

    assert torch.autograd.gradcheck(f, (x, A, B, *([b] if bias else [])))


@pytest.mark.parametrize("shape", [(), (4,), (2, 5), (2, 3, 4), (0,)])
def test_equals_the_plain_equation_for_any_leading_shape(shape):
    x, W, b, A, B = case(shape=shape)
    y = lowrank_linear(x, W, b, A, B, 0.5)
    assert y.shape == (*shape, 7)
    torch.testing.assert_close(y, plain(x, W, b, A, B, 0.5))
    with torch.no_grad():
        assert torch.equal(lowrank_linear(x, W, b, A, B, 0.5), y)


def test_a_strided_input_and_a_strided_gradient():
    x, W, b, A, B = case(shape=(4, 5))
    strided = x.detach().transpose(0, 1).requires_grad_()
    weights = torch.randn(7, 5, 4, dtype=torch.float64).permute(1, 2, 0)
    mine, theirs = (
        torch.autograd.grad((f(strided, W, b, A, B, 2.0) * weights).sum(), (strided, b, A, B))
        for f in (lowrank_linear, plain)
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_drops_and_rescales():
    torch.manual_seed(0)
    n = 4096
    x, eye = torch.ones(1, n), torch.eye(n)
    y = lowrank_linear(x, torch.zeros(n, n), None, eye, eye, 1.0, 0.25)
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.75))
    assert abs(kept.float().mean().item() - 0.75) < 0.04


def test_no_gradient_is_formed_for_an_input_that_needs_none():
    x, W, b, A, B = case()
    x, b = x.detach(), b.detach()
    lowrank_linear(x, W, b, A, B, 1.0).sum().backward()
    assert x.grad is None
    assert b.grad is None
    assert A.grad is not None


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_float32_adapters_on_a_bfloat16_base(dropout):
    x, W, b, A, B = case(torch.bfloat16, (8, 16))
    A, B = (t.detach().float().requires_grad_() for t in (A, B))
    y = lowrank_linear(x, W, b, A, B, 0.5, dropout)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == b.grad.dtype == torch.bfloat16
    assert A.grad.dtype == B.grad.dtype == torch.float32
    if not dropout:
        wide = [t.detach().float().requires_grad_() for t in (x, W, b, A, B)]
        z = plain(*wide, 0.5)
        z.sum().backward()
        torch.testing.assert_close(y.float(), z, rtol=2e-2, atol=5e-2)
        torch.testing.assert_close(A.grad, wide[3].grad, rtol=2e-2, atol=0.3)
        torch.testing.assert_close(x.grad.float(), wide[0].grad, rtol=2e-2, atol=0.1)


def test_autocast():
    x, W, b, A, B = case(torch.float32, (8, 16))
    with torch.autocast("cpu", torch.bfloat16):
        y = lowrank_linear(x, W, b, A, B, 0.5)
        with torch.no_grad():
            assert torch.equal(lowrank_linear(x, W, b, A, B, 0.5), y)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in (x, b, A, B))
    mine = A.grad.clone()
    A.grad = None
    plain(x, W, b, A, B, 0.5).sum().backward()
    torch.testing.assert_close(mine, A.grad, rtol=2e-2, atol=0.3)


def test_the_output_may_be_changed_in_place():
    x, W, b, A, B = case()
    y = lowrank_linear(x, W, b, A, B, 1.0)
    y += 1
    y.mul_(2).sum().backward()
    assert torch.equal(b.grad, torch.full_like(b, 20))


def test_a_second_derivative_is_refused():
    x, W, b, A, B = case()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(lowrank_linear(x, W, b, A, B, 1.0).sum(), x, create_graph=True)


def test_a_weight_that_trains_is_refused_here_and_served_by_the_plain_path():
    x, W, b, A, B = case()
    with pytest.raises(ValueError, match="must be frozen"):
        lowrank_linear(x, W.requires_grad_(), b, A, B, 1.0)
    model = nn.Sequential(nn.Linear(6, 7))
    fw.attach(model, fw.LoRA(rank=2, targets="0"))
    model[0].weight.requires_grad_()
    model(x.detach().float()).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_saves_no_dense_tensor_but_its_inputs(dropout):
    x, W, b, A, B = case(torch.float32, (8, 8))
    inputs, extra = {t.untyped_storage().data_ptr() for t in (x, W, b, A, B)}, {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in inputs:
            extra[t.untyped_storage().data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        # query, key and value read the same x
        graphs = [lowrank_linear(x, W, b, A, B, 1.0, dropout) for _ in range(3)]
    assert len(graphs) == 3
    low, mask = 64 * 3 * 4, 64 * 6 * 2 if dropout else 0  # h (n, r) float32 and m (n, in) int16
    assert sum(extra.values()) == 3 * (low + mask)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiles_to_one_graph(dropout):
    x, W, b, A, B = case(torch.float32)

    def f(x):
        return lowrank_linear(x, W, b, A, B, 1.5, dropout)

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    results = []
    for g in (f, compiled):
        torch.manual_seed(3)
        y = g(x)
        y.pow(2).sum().backward()
        results.append((y.detach(), A.grad.clone(), x.grad.clone()))
        A.grad = x.grad = None
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced)


def test_checkpointing_recomputes_the_same_mask():
    from torch.utils.checkpoint import checkpoint

    x, W, b, A, B = case()
    grads = []
    for wrap in (lambda f: f(x), lambda f: checkpoint(f, x, use_reentrant=False)):
        torch.manual_seed(5)
        wrap(lambda z: lowrank_linear(z, W, b, A, B, 1.0, 0.5).pow(2)).sum().backward()
        grads.append((A.grad.clone(), x.grad.clone()))
        A.grad = x.grad = None
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def warm(model):
    torch.manual_seed(7)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_law_kernel_equals_plain_path_in_a_model(llama, agrees, dtype):
    model = warm(llama_with_lora(llama, dtype))
    agrees(model, dtype, trained=28)


def llama_with_lora(llama, dtype):
    model = llama(dtype)
    fw.attach(model, fw.LoRA(rank=4, targets="linear"))
    return model


def test_only_the_exact_pair_is_served(llama, monkeypatch):
    served = []
    monkeypatch.setitem(fused.kernels, (LowRank, nn.Linear), lambda a, h, x: served.append(h) or serve(a, h, x))
    model = llama_with_lora(llama, torch.float32)
    ids = torch.arange(8)[None]
    model(input_ids=ids)
    assert len(served) == len(list(hosts(model))) == 14

    class Mine(LowRank):
        def forward(self, base, x):
            return base(x) + 1

    served.clear()
    host = model.model.layers[0].self_attn.q_proj
    host.adapters["default"].__class__ = Mine
    model(input_ids=ids)
    assert host not in served
    assert len(served) == 13


def test_dropout_only_in_training(llama):
    model = llama(torch.float32)
    fw.attach(model, fw.LoRA(rank=4, targets="linear", dropout=0.5))
    warm(model)
    ids = torch.arange(8)[None]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    model.eval()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_frozen_a_keeps_no_input():
    """LoRA-FA: what is saved beside the frozen weights is h (n, r) alone; the gradients that are left are the same."""
    x, W, b, A, B = case(torch.float32, (8, 8))
    kept = set()

    def pack(t):
        kept.add(t.untyped_storage().data_ptr())
        return t

    grads = []
    for frozen in (False, True):
        A.requires_grad_(not frozen)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = lowrank_linear(x, W, b, A, B, 1.0)
        assert (x.untyped_storage().data_ptr() in kept) is not frozen
        grads.append(torch.autograd.grad(y.square().sum(), (x, B, b)))
    assert all(torch.equal(p, q) for p, q in zip(*grads, strict=True))


def test_a_frozen_a_costs_less_memory_in_a_model(llama):
    """Of every layer that LoRA sits on, the inputs that nothing else needs are given up."""
    ids = torch.arange(24).view(2, 12)
    sizes = []
    for frozen in (False, True):
        model = fw.attach(llama(), fw.LoRA(rank=4, targets="linear", freeze_A=frozen))
        kept = {}

        def pack(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        sizes.append(sum(kept.values()))
        trained = {n.rsplit(".", 2)[-2] for n, p in model.named_parameters() if p.grad is not None}
        assert trained == ({"lora_B"} if frozen else {"lora_A", "lora_B"})
    assert sizes[1] < sizes[0] - 2 * 24 * 32 * 4
