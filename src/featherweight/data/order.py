"""Which rows make which batch: pure functions of integers, so that resuming needs no generator state."""

from collections.abc import Sequence

import numpy as np

WINDOW = 8  # batches sorted by length together: most of the padding goes, and batches stay random (docs/decisions.md)


def generator(seed: int, epoch: int) -> np.random.Generator:
    """A counter-based generator of its own for every (seed, epoch)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([abs(seed), int(seed < 0), epoch])))


def batches(
    lengths: Sequence[int],
    batch: int,
    seed: int,
    epoch: int,
    buckets: bool = True,
    weights: Sequence[float] | None = None,
) -> list[list[int]]:
    """An epoch: every row once, in batches of `batch` (one may be smaller). lengths: (rows,) tokens.

    buckets: shuffle, sort by length inside windows of 8 batches, cut, shuffle the batches.
    weights: (rows,) how often each is wanted, relative to the others (see `row_weights`); the epoch keeps its size
    and a row is drawn ⌊c⌋ or ⌈c⌉ times for an expected count of c (systematic sampling).
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1")
    draw = generator(seed, epoch)
    order = draw.permutation(len(lengths)) if weights is None else weighted(weights, draw)
    if not buckets:
        return [order[i : i + batch].tolist() for i in range(0, len(order), batch)]
    size = np.asarray(lengths)
    windows = [order[i : i + batch * WINDOW] for i in range(0, len(order), batch * WINDOW)]
    sorted_ = [w[np.argsort(size[w], kind="stable")] for w in windows]
    cut = [w[i : i + batch].tolist() for w in sorted_ for i in range(0, len(w), batch)]
    return [cut[i] for i in draw.permutation(len(cut))]


def weighted(weights: Sequence[float], draw: np.random.Generator) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """As many rows as there are weights; rows of one weight lie together while sampling, so that shares are exact."""
    w = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0):
        raise ValueError("weights: expected finite numbers of which none is negative and one is positive")
    n = len(w)
    rows = draw.permutation(n)
    rows = rows[np.argsort(w[rows], kind="stable")]
    ends = np.cumsum(w[rows]) * (n / w.sum())
    drawn = rows[np.minimum(np.searchsorted(ends, np.arange(n) + draw.random(), side="right"), n - 1)]
    return draw.permutation(drawn)


def row_weights(sources: Sequence[int], weights: Sequence[float]) -> list[float]:
    """Each source's weight spread over its rows: source s gets the share weights[s]/Σ weights of an epoch."""
    counts = np.bincount(np.asarray(sources), minlength=len(weights))
    return [weights[s] / int(counts[s]) for s in sources]


def pack(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Rows into bins of at most `length` tokens, first-fit-decreasing. Raises ValueError for a row longer than that."""
    if long := [i for i, n in enumerate(lengths) if n > length]:
        raise ValueError(f"pack: rows {long[:5]} are longer than {length} tokens: truncate them first")
    bins: list[list[int]] = []
    width = 1 << max(len(lengths) - 1, 0).bit_length()
    room = [length] * (2 * width)  # a tree of maxima: room[1] is the most room that any bin has
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = 1
        while at < width:
            at = 2 * at if room[2 * at] >= lengths[row] else 2 * at + 1
        bins.extend([] for _ in range(at - width + 1 - len(bins)))
        bins[at - width].append(row)
        room[at] -= lengths[row]
        while at > 1:
            at //= 2
            room[at] = max(room[2 * at], room[2 * at + 1])
    return bins
