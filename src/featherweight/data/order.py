"""Which rows make which batch: pure functions of integers, so that resuming needs no generator state."""

from collections.abc import Iterator, Sequence

import numpy as np


def generator(seed: int, epoch: int) -> np.random.Generator:
    """A counter-based generator of its own for every (seed, epoch)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([abs(seed), int(seed < 0), epoch])))


def batches(rows: int, batch: int, seed: int, epoch: int, weights: Sequence[float] | None = None) -> list[list[int]]:
    """An epoch: every row once, in random batches of `batch` (the last one may be smaller).

    weights: (rows,) how often each is wanted, relative to the others (see `row_weights`); the epoch keeps its size
    and a row is drawn ⌊c⌋ or ⌈c⌉ times for an expected count of c (systematic sampling).
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1")
    draw = generator(seed, epoch)
    order = draw.permutation(rows) if weights is None else weighted(weights, draw)
    return [order[i : i + batch].tolist() for i in range(0, len(order), batch)]


def cuts(sizes: Sequence[Sequence[int]], parts: int, most: int) -> list[tuple[int, list[list[int]]]]:
    """Positions cut into 1, 2 … `parts` groups of like size with little padding: for each (padded tokens, groups).

    A size has a length for each sequence that is padded by itself: an encoder's and a decoder's. With one the padding
    is the least there is; with several, the least among the positions sorted by any of them or by their sum. A group
    has at most `most` positions; a number of groups that cannot hold all is left out. The batch stays what it is: its
    gradient is a sum over rows, so a group may be a micro-batch of its own.
    """
    lengths = np.array(sizes, dtype=np.float64)  # (positions, sequences)
    keys = [lengths.sum(1), *(lengths.T if lengths.shape[1] > 1 else ())]
    found: dict[int, tuple[int, list[list[int]]]] = {}
    for key in keys:
        order = np.argsort(key, kind="stable")
        for tokens, made in runs(lengths[order], parts, most):
            if len(made) not in found or tokens < found[len(made)][0]:
                found[len(made)] = tokens, [order[first:end].tolist() for first, end in made]
    return [found[k] for k in sorted(found)]


def runs(
    lengths: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", parts: int, most: int
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The best cuts of positions that keep their order: (padded tokens, (first, end) of each group)."""
    n = len(lengths)
    starts, stops = np.arange(n)[:, None], np.arange(n)[None, :]
    size = stops - starts + 1
    longest = np.stack([np.maximum.accumulate(np.where(stops >= starts, own, 0.0), 1) for own in lengths.T]).sum(0)
    padded = np.where((size > 0) & (size <= most), size * longest, np.inf)  # (first, last) -> tokens
    best, made = padded[0], [np.zeros(n, dtype=np.int64)]
    for k in range(1, min(parts, n) + 1):
        if k > 1:
            before = np.concatenate([[np.inf], best[:-1]])[:, None] + padded
            made.append(before.argmin(0))
            best = before.min(0)
        if np.isfinite(best[-1]):
            yield int(best[-1]), groups(made)


def groups(made: list["np.ndarray[tuple[int], np.dtype[np.int64]]"]) -> list[tuple[int, int]]:
    """Follow each group's first position back from the end."""
    found, end = [], len(made[0])
    for firsts in reversed(made):
        start = int(firsts[end - 1])
        found.append((start, end))
        end = start
    return found[::-1]


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
