"""Intervals against closed forms, tables and coverage."""

import numpy as np
import pytest

from featherweight.baselines import intervals


def test_exact_by_closed_form():
    """None right of n: the upper end solves (1 - p)^n = 0.025."""
    low, high = intervals.exact(0, 10)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert intervals.exact(10, 10) == pytest.approx((0.025 ** (1 / 10), 1.0))
    assert intervals.exact(4, 20) == pytest.approx((0.0573, 0.4366), abs=1e-4)


def test_bootstrap_of_scores_is_that_of_the_mean():
    values = np.random.default_rng(1).random(400)
    low, high = intervals.of_mean(list(values))
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert intervals.of_mean(list(values)) == (low, high)


def test_right_or_wrong_is_exact():
    assert intervals.of_mean([1.0] * 4 + [0.0] * 16) == intervals.exact(4, 20)


def test_a_difference_is_paired():
    """The same rows right, but for five: far surer than two intervals that overlap."""
    ours, theirs = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50
    low, high = intervals.of_difference(ours, theirs)
    assert 0.03 < low < 0.06
    assert 0.14 < high < 0.18
    assert intervals.of_mean(ours)[0] < intervals.of_mean(theirs)[1]
    assert intervals.of_difference(ours, ours) == (0, 0)


def test_the_intervals_cover():
    """Of 200 samples of 100 rows about 190 intervals hold the truth."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        a, b = random.random(100) < 0.7, random.random(100) < 0.6
        low, high = intervals.bootstrap([float(x) - float(y) for x, y in zip(a, b, strict=True)], draws=1000)
        hits += low <= 0.1 <= high
    assert 180 <= hits <= 199
