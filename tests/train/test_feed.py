"""Rows to items: bins of a mixture keep the shares that were asked for."""

from collections import Counter

import pytest
import torch

from featherweight.data.order import row_weights
from featherweight.data.types import Encoded
from featherweight.train.feed import Feed
from featherweight.train.ranks import Ranks


def rows():
    """30 short rows of source 0, 60 longer ones of source 1."""
    return [Encoded(f"f:{i}", [7] * (4 if i < 30 else 9 + i % 3), [7] * 4, source=int(i >= 30)) for i in range(90)]


def feed(weights=(0.25, 0.75), **more):
    given = rows()
    shares = None if weights is None else row_weights([row.source for row in given], weights)
    return Feed(given, batch=2, seed=1, pad=0, packing=32, weights=shares, **more)


def test_bins_hold_every_row_once_and_no_more_than_their_length():
    for packed in (feed(), feed(None)):
        assert sorted(i for item in packed.items for i in item) == list(range(90))
        assert all(sum(len(packed.rows[i].input_ids) for i in item) <= 32 for item in packed.items)


def test_weighted_bins_hold_rows_of_one_source():
    packed = feed()
    assert all(len({packed.rows[i].source for i in item}) == 1 for item in packed.items)
    mixed = feed(None)
    assert any(len({mixed.rows[i].source for i in item}) == 2 for item in mixed.items)


@pytest.mark.parametrize("weights", [(0.25, 0.75), (3, 1), (1, 1)])
def test_rows_of_packed_mixtures_have_their_shares(weights):
    packed, seen = feed(weights), Counter()
    for epoch in range(40):
        for batch in packed.order.epoch(epoch):
            seen.update(packed.rows[i].source for item in batch for i in packed.items[item])
    share = seen[0] / seen.total()
    assert share == pytest.approx(weights[0] / sum(weights), abs=0.02)


def unlike(batch=16, **more):
    sizes = [3 + (37 * i) % 60 for i in range(64)]
    return Feed([Encoded(f"f:{i}", [7] * n, 1) for i, n in enumerate(sizes)], batch=batch, seed=2, pad=0, **more)


def held(step):
    return sorted(i for micro in step for item in micro for i in item)


def padded(feed, step):
    return sum(len(micro) * max(len(feed.rows[i].input_ids) for item in micro for i in item) for micro in step)


def test_a_batch_is_cut_by_length_and_stays_the_batch():
    feed, whole = unlike(), unlike(buckets=False)
    one = Ranks(torch.device("cpu"))
    for number in range(1, 9):
        cut, plain = feed.step(number, one, 1), whole.step(number, one, 1)
        assert held(cut) == held(plain)
        assert len(plain) == 1 < len(cut)
        assert padded(feed, cut) + 64 * len(cut) < padded(whole, plain) + 64


def test_ranks_have_as_many_micro_batches_and_accumulate_is_the_least():
    feed = unlike()
    whole = held(feed.step(3, Ranks(torch.device("cpu")), 1))
    for accumulate in (1, 3, 4):
        shares = [feed.step(3, Ranks(torch.device("cpu"), r, 2), accumulate) for r in range(2)]
        assert len(shares[0]) == len(shares[1]) >= accumulate
        assert all(len(micro) <= -(-8 // accumulate) for share in shares for micro in share)
        assert sorted(held(shares[0]) + held(shares[1])) == whole


def test_fewer_rows_than_micro_batches():
    feed = unlike(batch=3)
    assert held(feed.step(1, Ranks(torch.device("cpu")), 5)) == held(feed.step(1, Ranks(torch.device("cpu")), 1))


def test_a_decoders_rows_are_cut_by_their_own_lengths_too():
    """Inputs of one length; labels, or choices, are what is padded."""
    answers = [2, 40, 3, 38] * 4
    spelt = [Encoded(f"f:{i}", [7] * 90, [7] * n) for i, n in enumerate(answers)]
    chosen = [Encoded(f"f:{i}", [7] * 90, 0, choices=[[7] * n] * 2) for i, n in enumerate(answers)]
    for given in (spelt, chosen):
        cut = Feed(given, batch=16, seed=0, pad=0).step(1, Ranks(torch.device("cpu")), 1)
        assert len(cut) > 1
        assert all(len({answers[i] > 20 for item in micro for i in item}) == 1 for micro in cut)
    causal = Feed([Encoded(f"f:{n}", [7] * n, [7] * n) for n in answers], batch=16, seed=0, pad=0)
    assert causal.sizes == [(n,) for n in answers]
