import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.data.order import batches, pack, row_weights

lengths = st.lists(st.integers(1, 40), max_size=300)


@given(lengths, st.integers(1, 9), st.integers(-5, 5), st.integers(0, 3), st.booleans())
def test_every_row_exactly_once(sizes, batch, seed, epoch, buckets):
    made = batches(sizes, batch, seed, epoch, buckets)
    assert sorted(i for b in made for i in b) == list(range(len(sizes)))
    assert sorted({len(b) for b in made})[-1:] in ([], [batch]) or len(sizes) < batch
    assert sum(len(b) < batch for b in made) <= 1


@given(lengths, st.integers(1, 5), st.integers(0, 10**6), st.data())
def test_the_tail_is_the_same_from_any_position(sizes, batch, seed, data):
    np.random.seed(data.draw(st.integers(0, 9)))  # a global generator must not matter
    whole = batches(sizes, batch, seed, 1)
    at = data.draw(st.integers(0, len(whole)))
    np.random.rand(3)
    assert batches(sizes, batch, seed, 1)[at:] == whole[at:]


def test_seeds_and_epochs_differ_and_buckets_save_padding():
    sizes = [(37 * i) % 101 + 1 for i in range(2000)]
    one = batches(sizes, 8, 0, 0)
    assert one != batches(sizes, 8, 0, 1)
    assert one != batches(sizes, 8, 1, 0)
    assert batches(sizes, 8, -1, 0) != batches(sizes, 8, 1, 0)

    def padding(made):
        return sum(max(sizes[i] for i in b) * len(b) - sum(sizes[i] for i in b) for b in made)

    # windows of 8 batches: longer ones save more padding and cost quality (docs/decisions.md)
    assert padding(one) < padding(batches(sizes, 8, 0, 0, buckets=False)) / 5


def test_weights_give_shares_and_keep_the_size_of_an_epoch():
    sources = [0] * 900 + [1] * 100
    drawn = [i for b in batches([1] * 1000, 7, 3, 0, weights=row_weights(sources, [0.7, 0.3])) for i in b]
    counts = np.bincount(drawn, minlength=1000)
    assert len(drawn) == 1000
    assert abs(counts[:900].sum() - 700) <= 1
    assert set(counts[:900]) == {0, 1}
    assert set(counts[900:]) == {3}
    with pytest.raises(ValueError, match="none is negative"):
        batches([1, 1], 1, 0, 0, weights=[-1, 2])


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
