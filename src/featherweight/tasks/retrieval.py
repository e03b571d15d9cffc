"""Metrics of rankings: pure functions of `ranked`, per query whether each result is relevant, from first to last.

hit rate@k   share of queries with a relevant result among their first k
MRR          mean of 1 / rank of the first relevant result (0 where there is none)
nDCG@k       mean of DCG / ideal DCG, DCG = Σ_{i ≤ k} rel_i / log₂(i + 1)      (Järvelin and Kekäläinen 2002)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

Ranked = Sequence[Sequence[bool]]


def hit_rate(ranked: Ranked, k: int) -> float:
    """The share of queries with a relevant result among their first `k`, 0 to 1."""
    return sum(any(row[:k]) for row in ranked) / len(ranked)


def reciprocal_rank(ranked: Ranked) -> float:
    """The mean reciprocal rank of the first relevant result, 0 to 1."""
    return sum(1 / (list(row).index(True) + 1) if any(row) else 0.0 for row in ranked) / len(ranked)


def ndcg(ranked: Ranked, k: int) -> float:
    """The mean normalized discounted cumulative gain of the first `k` results, 0 to 1; `ranked` holds every result."""
    return sum(gain(row[:k]) / gain(sorted(row, reverse=True)[:k]) if any(row) else 0.0 for row in ranked) / len(ranked)


def gain(row: Sequence[bool]) -> float:
    return sum(1 / log2(i + 2) for i, relevant in enumerate(row) if relevant)
