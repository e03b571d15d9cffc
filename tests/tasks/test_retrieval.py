"""Metrics of rankings against numbers worked by hand."""

from math import log2

import pytest

from featherweight.tasks.retrieval import hit_rate, ndcg, reciprocal_rank

RANKED = [[True, False, False, False], [False, False, True, True], [False, True, False, True], [False] * 4]


def test_hit_rate():
    assert [hit_rate(RANKED, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 0.75]


def test_reciprocal_rank():
    assert reciprocal_rank(RANKED) == pytest.approx((1 + 1 / 3 + 1 / 2 + 0) / 4)


def test_ndcg():
    """The ideal puts both relevant results first; beyond k = 3 nothing counts, neither here nor in the ideal."""
    ideal = 1 + 1 / log2(3)
    assert ndcg(RANKED, 4) == pytest.approx(
        (1 + (1 / 2 + 1 / log2(5)) / ideal + (1 / log2(3) + 1 / log2(5)) / ideal) / 4
    )
    assert ndcg(RANKED, 1) == 0.25
    assert ndcg(RANKED, 3) == pytest.approx((1 + 1 / 2 / ideal + 1 / log2(3) / ideal) / 4)


def test_ndcg_is_scikit_learns():
    from sklearn.metrics import ndcg_score

    scores = [[4, 3, 2, 1]] * 3
    assert ndcg(RANKED[:3], 3) == pytest.approx(ndcg_score([list(map(int, row)) for row in RANKED[:3]], scores, k=3))
