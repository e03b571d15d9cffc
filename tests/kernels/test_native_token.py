"""Norms, angles and attention of one query in native code, at every level: against formulas in float64 and torch."""

import pytest
import torch
from support.operations import LAW, weights
from torch.nn import functional as F

from featherweight.kernels import native_token  # noqa: F401  # registers
from featherweight.quant.ops import native

DTYPES = (torch.float32, torch.bfloat16)


def near(dtype):
    """A unit of float32 or two of bfloat16 in the last place, which another order of sums can move."""
    return {"rtol": 2e-6, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2**-7, "atol": 1e-3}


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(level, dtype):
    for d in (*LAW, 896):
        for rows in (1, 3):
            x, w = weights(1, rows, d, dtype=dtype, seed=d), weights(d, dtype=dtype)
            y = native["norm"](x, w, 1e-5)
            unit = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
            torch.testing.assert_close(y, w * unit.to(dtype), **near(dtype))
            assert y.shape == x.shape
    assert native["norm"](torch.zeros(1, 8, dtype=dtype), w[:8].contiguous(), 1e-5).eq(0).all()
    assert native["norm"](torch.full((1, 8), torch.nan, dtype=dtype), w[:8].contiguous(), 1e-5).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate_to_the_bit(level, dtype):
    """The formula as transformers writes it."""

    def turned(u, cos, sin):
        one, two = u.chunk(2, -1)
        return u * cos[:, None] + torch.cat([-two, one], -1) * sin[:, None]

    for b, h, g, d in ((1, 14, 2, 64), (3, 4, 4, 2), (8, 5, 1, 96)):
        for rows in (1, b):
            q, k = weights(b, h, 1, d, dtype=dtype), weights(b, g, 1, d, dtype=dtype, seed=1)
            cos, sin = weights(rows, 1, d, dtype=dtype, seed=2), weights(rows, 1, d, dtype=dtype, seed=3)
            found = native["rotate"](q, k, cos, sin)
            assert torch.equal(found[0], turned(q, cos, sin))
            assert torch.equal(found[1], turned(k, cos, sin))


@pytest.mark.parametrize("dtype", DTYPES)
def test_attend(level, dtype):
    for b, h, g, t, d in ((1, 14, 2, 1, 64), (1, 4, 4, 33, 5), (3, 6, 2, 9, 32), (2, 3, 1, 2500, 80)):
        q, k, v = (weights(b, n, s, d, dtype=dtype, seed=n) for n, s in ((h, 1), (g, t), (g, t)))
        for seen in (None, weights(b, 1, 1, t) > 0, weights(1, 1, 1, t) > 0):
            if seen is not None:
                seen[..., -1] = True
            y = native["attend"](q, k, v, seen, 0.3)
            wide = (u.double().repeat_interleave(h // u.shape[1], 1) for u in (q, k, v))
            expected = F.scaled_dot_product_attention(*wide, attn_mask=seen, scale=0.3).transpose(1, 2)
            assert y.shape == (b, 1, h, d)
            torch.testing.assert_close(y.double(), expected, rtol=2**-7 if y.itemsize == 2 else 1e-5, atol=1e-5)


def test_attention_of_one_against_another_is_the_logistic_function(level):
    """Two keys, values 1 and 0: y = 1 / (1 + e⁻ᶻ), z from -100 to 100."""
    z = torch.linspace(-100, 100, 401, dtype=torch.float64).float()
    for value in z:
        y = native["attend"](value.view(1, 1, 1, 1), torch.tensor([[[[1.0], [0.0]]]]),
                             torch.tensor([[[[1.0], [0.0]]]]), None, 1.0)  # fmt: skip
        torch.testing.assert_close(y.double().flatten(), value.double().sigmoid().view(1), rtol=4e-7, atol=1e-37)


def test_extremes_of_attention(level):
    q, k, v = weights(1, 2, 1, 8) * 1e4, weights(1, 1, 5, 8) * 1e4, weights(1, 1, 5, 8)
    best = (q[0, :, 0] @ k[0, 0].T).argmax(-1)
    assert torch.equal(native["attend"](q, k, v, None, 1.0)[0, 0], v[0, 0, best])
    nobody = torch.zeros(1, 1, 1, 5, dtype=torch.bool)
    assert native["attend"](q, k, v, nobody, 1.0).eq(0).all()  # as torch has it
    for poisoned in ((q * torch.nan, k, v), (q, k * torch.nan, v), (q, k, v * torch.nan)):
        assert native["attend"](*poisoned, None, 1.0).isnan().all()
    v[0, 0, 4] = torch.nan
    assert native["attend"](q, k, v, torch.arange(5).view(1, 1, 1, 5) < 4, 1.0).isfinite().all()


def test_what_is_not_served(level):
    x, w = weights(2, 8), weights(8)
    q, k, angle = weights(1, 4, 1, 8), weights(1, 2, 3, 8), weights(1, 1, 8)
    no = NotImplemented
    assert native["norm"](x.half(), w.half(), 1e-5) is no
    assert native["norm"](x.bfloat16(), w, 1e-5) is no  # torch widens the product
    assert native["norm"](x, w[:4], 1e-5) is no
    assert native["norm"](x.t(), w[:2], 1e-5) is no
    assert native["rotate"](q, k, angle, angle) is no  # three positions
    assert native["rotate"](q, k[:, :, :1], angle, angle) is no  # a slice
    assert native["rotate"](q, q, angle[..., :4].contiguous(), angle) is no  # a part of the head
    assert native["rotate"](q, q, angle[..., :4].contiguous(), angle[..., :4].contiguous()) is no
    assert native["rotate"](q[..., :7].contiguous(), q[..., :7].contiguous(), *[angle[..., :7].contiguous()] * 2) is no
    assert native["attend"](q, k, k[..., :4].contiguous(), None, 1.0) is no
    assert native["attend"](q[:, :3].contiguous(), k, k, None, 1.0) is no  # heads that share no whole group
    assert native["attend"](q, k, k, torch.zeros(1, 1, 1, 3), 1.0) is no  # an additive mask
    assert native["attend"](q, k, k, torch.ones(1, 4, 1, 3, dtype=torch.bool), 1.0) is no
    assert native["attend"](q, k[0], k[0], None, 1.0) is no
    assert native["attend"](k, k, k, None, 1.0) is no  # three queries
    assert native["attend"](q[:0], k[:0], k[:0], None, 1.0) is no
