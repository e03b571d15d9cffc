"""How sure an accuracy is, and a difference of two on the same rows: 95 % intervals.

exact       k right of n rows: Clopper and Pearson's binomial interval
bootstrap   rows drawn with replacement, 10,000 times by a fixed seed: the 2.5 % and 97.5 % quantiles of the mean
            (Efron 1979). Of two contenders the differences of a row are drawn together: paired.
"""

from __future__ import annotations

from collections.abc import Sequence

DRAWS = 10_000
LEVEL = 0.95
Interval = tuple[float, float]


def of_mean(values: Sequence[float]) -> Interval:
    """Exact where every row is right or wrong, by bootstrap where rows are scored in between."""
    if all(v in (0, 1) for v in values):
        return exact(int(sum(values)), len(values))
    return bootstrap(values)


def exact(right: int, rows: int) -> Interval:
    from scipy.stats import binomtest

    found = binomtest(right, rows).proportion_ci(LEVEL, "exact")
    return float(found.low), float(found.high)


def bootstrap(values: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Interval:
    import numpy as np

    random, rows = np.random.default_rng(seed), np.asarray(values, dtype=float)
    at_a_time = max(1, 2_000_000 // len(rows))
    means: list[float] = []
    while len(means) < draws:
        picked = random.integers(0, len(rows), (min(at_a_time, draws - len(means)), len(rows)))
        means += rows[picked].mean(1).tolist()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def of_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Of mean(ours) - mean(theirs), row by row on the same rows."""
    return bootstrap([a - b for a, b in zip(ours, theirs, strict=True)])
