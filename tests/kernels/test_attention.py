import pytest
import torch
from torch.nn import functional as F

from featherweight.kernels import attention
from featherweight.kernels.attention import Redirect, attend, dropped_attention
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


def test_fits_attention_that_drops(bert, llama):
    attend_of = lambda m: m.bert.encoder.layer[0].attention.self  # noqa: E731
    for rate, fit in ((0.1, True), (0.0, False)):
        module = attend_of(bert(attention_probs_dropout_prob=rate))
        assert attention.fits(module, type(module)) is fit
        module = llama(attention_dropout=rate).model.layers[0].self_attn
        assert attention.fits(module, type(module)) is fit
    model = bert()
    assert not attention.fits(model, type(model))
