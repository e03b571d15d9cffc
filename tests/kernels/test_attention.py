import pytest
import torch
from torch.nn import functional as F

from featherweight.kernels import attention
from featherweight.kernels.attention import SHORT, Redirect, ShortAttention, attend, dropped_attention
from featherweight.kernels.noise import keep_mask, keep_probability


def qkv(dtype=torch.float64, steps=5):
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, 4).to(dtype).requires_grad_() for n in (steps, 5, 5)]


def test_gradcheck():
    bias = torch.randn(2, 1, 5, 5, dtype=torch.float64)

    def f(q, k, v):
        torch.manual_seed(1)
        return dropped_attention(q, k, v, bias, 0.5, 0.3)

    assert torch.autograd.gradcheck(f, qkv())


@pytest.mark.parametrize("kind", ["none", "boolean", "additive", "causal"])
def test_equals_the_plain_equation_under_the_same_mask(kind):
    q, k, v = qkv()
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    low = torch.zeros(5, 5, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    given = {"none": {}, "boolean": {"attn_mask": seen}, "additive": {"attn_mask": low}, "causal": {"is_causal": True}}
    torch.manual_seed(2)
    y = attend(q, k, v, dropout_p=0.4, **given[kind])
    torch.manual_seed(2)
    m = keep_mask((2, 3, 5, 5), 0.4)
    P = torch.softmax(q @ k.transpose(-1, -2) / 2 + (0 if kind == "none" else low), -1)
    torch.testing.assert_close(y, (P * -m / keep_probability(0.4)) @ v)


def test_a_row_that_may_attend_to_nothing_stays_finite():
    q, k, v = qkv(torch.float32)
    y = attend(q, k, v, torch.zeros(5, 5, dtype=torch.bool), 0.1)
    y.sum().backward()
    assert all(t.isfinite().all() for t in (y, q.grad, k.grad, v.grad))


def test_without_dropout_torchs_own_answers():
    q, k, v = qkv()
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    learned = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
    attend(q, k, v, learned, 0.5).sum().backward()
    assert learned.grad is not None


def test_redirects_only_while_it_is_on():
    q, k, v = qkv()
    with Redirect():
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
        assert torch.equal(F.relu(q), q.clamp(min=0))
    assert "DroppedAttention" in type(y.grad_fn).__name__
    assert "DroppedAttention" not in type(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5).grad_fn).__name__


def test_fits_attention_of_the_registry(bert, llama):
    for model, module in ((bert(), "bert.encoder.layer.0.attention.self"), (llama(), "model.layers.0.self_attn")):
        host = model.get_submodule(module)
        assert attention.fits(host, type(host))
        assert not attention.fits(model, type(model))


def low(steps=40, heads=(4, 4), dtype=torch.bfloat16):
    torch.manual_seed(0)
    shapes = [(2, h, steps, 16) for h in (heads[0], heads[1], heads[1])]
    return [torch.randn(s).mul(2).to(dtype).requires_grad_() for s in shapes]


def answers(f, tensors, g):
    y = f(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, g.to(y.dtype))]


KINDS = {"none": {}, "causal": {"is_causal": True}, "boolean": {"attn_mask": torch.rand(2, 1, 40, 40) > 0.3},
         "additive": {"attn_mask": torch.zeros(2, 1, 1, 40).masked_fill(torch.arange(40) > 30, -1e38)}}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_few_keys_in_16_bits_err_no_more_than_torchs_own(kind, heads, dtype):
    given = dict(KINDS[kind], enable_gqa=heads[0] != heads[1])
    if kind == "additive":
        given["attn_mask"] = given["attn_mask"].clamp(min=torch.finfo(dtype).min).to(dtype)
    tensors, g = low(heads=heads, dtype=dtype), torch.randn(2, 4, 40, 16).to(dtype)
    exact = dict(given, attn_mask=given["attn_mask"].double()) if kind == "additive" else given
    wide = [t.detach().double().requires_grad_() for t in tensors]
    truth = answers(lambda *a: F.scaled_dot_product_attention(*a, **exact), wide, g)
    theirs = answers(lambda *a: F.scaled_dot_product_attention(*a, **given), tensors, g)
    mine = answers(lambda *a: attend(*a, **given), tensors, g)
    assert not all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))  # it was served here
    for name, a, b, c in zip("oqkv", mine, theirs, truth, strict=True):
        mine_off, their_off = ((t.double() - c).norm() / c.norm() for t in (a, b))
        assert mine_off < 1.6 * their_off + torch.finfo(dtype).eps / 8, (name, mine_off, their_off)


def test_short_attention_is_its_derivative():
    assert torch.autograd.gradcheck(lambda *a: ShortAttention.apply(*a, None, 0.5), qkv())


def test_many_keys_and_full_precision_are_torchs():
    for tensors in (low(SHORT + 1), [t.float() for t in low()]):
        assert torch.equal(attend(*tensors), F.scaled_dot_product_attention(*tensors))


def test_under_autocast_as_torchs_own():
    tensors = [t.float() for t in low()]
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = attend(*tensors), F.scaled_dot_product_attention(*tensors)
    assert mine.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)
    exact = F.scaled_dot_product_attention(*(t.bfloat16().double() for t in tensors))
    off = [(t.double() - exact).norm() / exact.norm() for t in (mine, theirs)]
    assert off[0] < 1.6 * off[1]


def test_logits_keep_float32_where_dropout_drops():
    q, k, _ = low()
    P = attention.probabilities(q, k, None, 0.25)
    exact = torch.softmax(q.double() @ k.double().transpose(-1, -2) / 4, -1)
    assert P.dtype == torch.bfloat16
    assert torch.equal(P, torch.softmax((q.float() * 0.25) @ k.float().transpose(-1, -2), -1).bfloat16())
    assert ((P - exact).norm() / exact.norm()) < 3e-3
