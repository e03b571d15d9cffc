import math

import pytest
import torch

from featherweight.kernels.noise import drop_level, integers, keep, keep_, keep_mask, keep_probability, words


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_shares_kept(p):
    torch.manual_seed(0)
    n = 1_000_003
    kept = -keep_mask((n,), p).sum().item()
    q = keep_probability(p)
    assert abs(q - (1 - p)) <= 2**-17
    assert abs(kept - n * q) <= 5 * math.sqrt(n * q * (1 - q))


def test_every_quarter_of_a_word_is_as_good():
    torch.manual_seed(0)
    rates = -keep_mask((400_000, 4), 0.3).double().mean(0)
    assert ((rates - 0.7).abs() < 0.004).all()


def test_neighbors_are_independent():
    torch.manual_seed(0)
    m = keep_mask((500_000,), 0.5).double() + 0.5
    for lag in (1, 2, 3, 4, 8):
        assert abs((m[lag:] * m[:-lag]).mean().item()) < 0.0025


def test_torchs_generator_decides():
    def draw(seed):
        torch.manual_seed(seed)
        return keep_mask((3, 5, 7), 0.5)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert draw(1).shape == (3, 5, 7)
    assert set(draw(1).unique().tolist()) == {0, -1}


def test_empty_and_odd_sizes():
    assert keep_mask((0, 4), 0.5).shape == (0, 4)
    assert keep_mask((), 0.5).shape == ()
    assert keep_mask((5,), 0.0).tolist() == [-1] * 5


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_no_probability_is_an_error(p):
    with pytest.raises(ValueError, match=r"expected a probability in \[0, 1\)"):
        drop_level(p)


def test_the_largest_share_still_keeps_something():
    assert keep_probability(0.9999999) == 2**-16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_keeping_is_exact_and_blind_to_what_is_dropped(dtype):
    x = torch.tensor([1.5, -2.0, torch.inf, torch.nan, -0.0, 3.0], dtype=dtype)
    mask = torch.tensor([-1, -1, 0, 0, -1, 0], dtype=torch.int16)
    expected = torch.tensor([1.5, -2.0, 0, 0, -0.0, 0], dtype=dtype)
    assert torch.equal(keep(x, mask), expected)
    assert x.isnan().any()
    assert keep_(x, mask) is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("source", [words, integers])
def test_both_sources_are_uniform_over_16_bits(source):
    torch.manual_seed(0)
    noise = source(262_144, "cpu")
    assert noise.dtype == torch.int16
    counts = torch.bincount((noise.int() + 32768) // 4096, minlength=16)
    assert len(counts) == 16
    assert ((counts - 16384).abs() < 5 * 16384**0.5).all()
    assert noise.min() < -32700
    assert noise.max() > 32700
