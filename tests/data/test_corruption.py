"""BERT's masks and T5's spans against numbers worked by hand and against the published constants."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featherweight.data.corruption import IGNORED, hidden_count, masked, segments, span_counts, spans, split

MASK, VOCABULARY = 4, 100


def noise_of(*rows):
    return torch.tensor(rows).unsqueeze(1)  # (3, 1, seq)


def test_a_row_worked_by_hand():
    """Ten tokens, special ones at both ends: 8 may be hidden, round(8 · 0.4) = 3 are: those of the lowest noise."""
    ids = torch.tensor([[2, 11, 12, 13, 14, 15, 16, 17, 18, 3]])
    free = torch.tensor([[False, *[True] * 8, False]])
    noise = noise_of(
        [0.0, 0.5, 0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.6, 0.0],  # lowest among the free: places 2, 4, 6
        [0.0, 0.0, 0.79, 0.0, 0.85, 0.0, 0.95, 0.0, 0.0, 0.0],  # mask, random, as it was
        [0.0, 0.0, 0.5, 0.0, 0.42, 0.0, 0.7, 0.0, 0.0, 0.0],
    )
    told, targets = masked(ids, free, noise, MASK, VOCABULARY, 0.4)
    assert told.tolist() == [[2, 11, MASK, 13, 42, 15, 16, 17, 18, 3]]
    assert targets.tolist() == [[IGNORED, IGNORED, 12, IGNORED, 14, IGNORED, 16, IGNORED, IGNORED, IGNORED]]


def test_shares_are_80_10_10_of_15_percent():
    """Devlin et al. 2019, section 3.1, over 256,000 tokens: four standard deviations."""
    ids = torch.randint(5, VOCABULARY, (2000, 128), generator=torch.Generator().manual_seed(1))
    noise = torch.rand(3, 2000, 128, generator=torch.Generator().manual_seed(2))
    told, targets = masked(ids, torch.ones_like(ids, dtype=torch.bool), noise, MASK, VOCABULARY, 0.15)
    hidden = targets != IGNORED
    assert hidden.sum(1).unique().tolist() == [19]  # round(0.15 · 128) in every row
    n = int(hidden.sum())
    share = {"mask": (told == MASK)[hidden], "same": (told == ids)[hidden]}
    random = (~share["mask"] & ~share["same"]).float().mean()
    for found, expected in (
        (share["mask"].float().mean(), 0.8 + 0.1 / VOCABULARY),
        (random, 0.1),
        (share["same"].float().mean(), 0.1),
    ):
        assert float(found) == pytest.approx(expected, abs=4 * (0.25 / n) ** 0.5 + 2e-3)
    assert torch.equal(told[~hidden], ids[~hidden])
    assert torch.equal(targets[hidden], ids[hidden])


@pytest.mark.parametrize(("tokens", "hidden"), [(0, 0), (1, 1), (3, 1), (10, 2), (100, 15), (128, 19)])
def test_at_least_one_token_is_hidden(tokens, hidden):
    assert hidden_count(tokens, 0.15) == hidden


def test_spans_of_the_papers_sentence():
    """Raffel et al. 2020, figure 2: "Thank you <X> me to your party <Y> week ." and "<X> for inviting <Y> last <Z>"."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    kept, told = split(words, [(2, 4), (8, 9)], ["<X>", "<Y>"])
    assert kept == ["Thank", "you", "<X>", "me", "to", "your", "party", "<Y>", "week", "."]
    assert told == ["<X>", "for", "inviting", "<Y>", "last"]


@pytest.mark.parametrize(
    ("tokens", "hidden", "count"), [(512, 77, 26), (128, 19, 6), (100, 15, 5), (20, 3, 1), (10, 2, 1), (2, 1, 1)]
)
def test_numbers_of_spans_are_the_published_ones(tokens, hidden, count):
    """T5's random_spans_noise_mask: round(length · density) tokens, round of that by the mean length."""
    assert span_counts(tokens, 0.15, 3.0) == (hidden, count)


@given(st.integers(2, 300), st.floats(0.05, 0.9), st.floats(1, 10), st.integers(0, 2**31))
def test_spans_hide_what_was_asked_and_lose_nothing(tokens, density, mean, seed):
    found = spans(tokens, density, mean, torch.Generator().manual_seed(seed))
    hidden, count = span_counts(tokens, density, mean)
    assert len(found) == count
    assert sum(end - first for first, end in found) == hidden
    assert all(first < end for first, end in found)
    assert all(b[0] > a[1] for a, b in pairwise(found)), "spans that touch would be one"
    assert found[0][0] > 0
    assert found[-1][1] == tokens
    kept, told = split(range(tokens), found, [-1 - i for i in range(count)])
    parts, key = {}, None
    for token in told:
        key = token if token < 0 else key
        parts.setdefault(key, []).extend([token] if token >= 0 else [])
    assert [t for token in kept for t in (parts[token] if token < 0 else [token])] == list(range(tokens))


def test_every_cut_is_as_likely_as_any_other():
    """5 into 3 parts of at least 1: six ways, each a sixth of 3,000 draws."""
    draw = torch.Generator().manual_seed(0)
    found = [tuple(segments(5, 3, draw)) for _ in range(3000)]
    ways = {way: found.count(way) for way in set(found)}
    assert set(ways) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert all(abs(n - 500) < 4 * (3000 * 5 / 36) ** 0.5 for n in ways.values())
