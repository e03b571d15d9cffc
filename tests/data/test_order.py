from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.data.order import batches, cuts, pack, row_weights

lengths = st.lists(st.integers(1, 40), max_size=300)


@given(st.integers(0, 300), st.integers(1, 9), st.integers(-5, 5), st.integers(0, 3))
def test_every_row_exactly_once(rows, batch, seed, epoch):
    made = batches(rows, batch, seed, epoch)
    assert sorted(i for b in made for i in b) == list(range(rows))
    assert sorted({len(b) for b in made})[-1:] in ([], [batch]) or rows < batch
    assert sum(len(b) < batch for b in made) <= 1


@given(st.integers(0, 300), st.integers(1, 5), st.integers(0, 10**6), st.data())
def test_the_tail_is_the_same_from_any_position(rows, batch, seed, data):
    np.random.seed(data.draw(st.integers(0, 9)))  # a global generator must not matter
    whole = batches(rows, batch, seed, 1)
    at = data.draw(st.integers(0, len(whole)))
    np.random.rand(3)
    assert batches(rows, batch, seed, 1)[at:] == whole[at:]


def test_seeds_and_epochs_differ():
    one = batches(2000, 8, 0, 0)
    assert one != batches(2000, 8, 0, 1)
    assert one != batches(2000, 8, 1, 0)
    assert batches(2000, 8, -1, 0) != batches(2000, 8, 1, 0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(1, 4), st.integers(1, 7))
def test_cuts_have_the_least_padding(sizes, parts, most):
    """Against every way to cut the sorted lengths."""
    n, order = len(sizes), sorted(sizes)
    found = {len(made): (tokens, made) for tokens, made in cuts([[n] for n in sizes], parts, most)}
    for k in range(1, parts + 1):
        ways = [(0, *inner, n) for inner in combinations(range(1, n), k - 1)] if k <= n else []
        ways = [w for w in ways if all(b - a <= most for a, b in pairwise(w))]
        assert (k in found) == bool(ways)
        if ways:
            tokens, made = found[k]
            assert tokens == min(sum((b - a) * order[b - 1] for a, b in pairwise(w)) for w in ways)
            assert sorted(i for group in made for i in group) == list(range(n))
            assert tokens == sum(len(g) * max(sizes[i] for i in g) for g in made)
            assert all(0 < len(g) <= most for g in made)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=7), st.integers(1, 4))
def test_cuts_count_a_decoders_padding(sizes, parts):
    """Never more than when sorted by the inputs alone, and what is said is what the groups are padded to."""
    by_inputs = {len(made): made for _, made in cuts([[n] for n, _ in sizes], parts, 7)}
    for tokens, made in cuts(sizes, parts, 7):
        assert sorted(i for group in made for i in group) == list(range(len(sizes)))
        assert tokens == padding(made, sizes) <= padding(by_inputs[len(made)], sizes)


def padding(groups, sizes):
    return sum(len(g) * sum(max(sizes[i][d] for i in g) for d in (0, 1)) for g in groups)


def test_a_long_answer_is_not_read_with_short_ones():
    """Prompts of one length: only the answers can tell the rows apart."""
    sizes = [(9, 1), (9, 50), (9, 2), (9, 48)]
    assert [sorted(g) for g in {len(m): m for _, m in cuts(sizes, 2, 4)}[2]] == [[0, 2], [1, 3]]


def test_weights_give_shares_and_keep_the_size_of_an_epoch():
    sources = [0] * 900 + [1] * 100
    drawn = [i for b in batches(1000, 7, 3, 0, weights=row_weights(sources, [0.7, 0.3])) for i in b]
    counts = np.bincount(drawn, minlength=1000)
    assert len(drawn) == 1000
    assert abs(counts[:900].sum() - 700) <= 1
    assert set(counts[:900]) == {0, 1}
    assert set(counts[900:]) == {3}
    with pytest.raises(ValueError, match="none is negative"):
        batches(2, 1, 0, 0, weights=[-1, 2])


@given(lengths, st.integers(40, 64))
def test_pack_is_first_fit_decreasing(sizes, length):
    bins = pack(sizes, length)
    expected, room = [], []
    for row in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = next((b for b, free in enumerate(room) if free >= sizes[row]), len(room))
        if at == len(room):
            expected.append([])
            room.append(length)
        expected[at].append(row)
        room[at] -= sizes[row]
    assert bins == expected


def test_pack_refuses_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="longer than 4 tokens"):
        pack([3, 5], 4)
