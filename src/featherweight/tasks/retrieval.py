"""Metrics of rankings: pure functions of `ranked` (queries, results), whether each result is relevant, first to last.

hit rate@k   share of queries with a relevant result among their first k
MRR          mean of 1 / rank of the first relevant result (0 where there is none)
nDCG@k       mean of DCG / ideal DCG, DCG = Σ_{i ≤ k} rel_i / log₂(i + 1)      (Järvelin and Kekäläinen 2002)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

HITS = (1, 3, 5, 10)


def hit_rate(ranked: ArrayLike, k: int) -> float:
    """The share of queries with a relevant result among their first `k`, 0 to 1."""
    return float(np.asarray(ranked)[:, :k].any(1).mean())


def reciprocal_rank(ranked: ArrayLike) -> float:
    """The mean reciprocal rank of the first relevant result, 0 to 1."""
    found = np.asarray(ranked)
    return float(np.where(found.any(1), 1 / (found.argmax(1) + 1), 0.0).mean())


def ndcg(ranked: ArrayLike, k: int) -> float:
    """The mean normalized discounted cumulative gain of the first `k` results, 0 to 1; `ranked` holds every result."""
    found = np.asarray(ranked)
    weights = 1 / np.log2(np.arange(min(k, found.shape[1])) + 2)
    gains = found[:, :k] @ weights
    best = np.concatenate([[1.0], weights.cumsum()])[np.minimum(found.sum(1), len(weights))]  # none relevant: 0 / 1
    return float((gains / best).mean())


def metrics(ranked: ArrayLike) -> dict[str, float]:
    """All of them: hit_rate@1, @3, @5 and @10, mrr, ndcg@10."""
    hits = {f"hit_rate@{k}": hit_rate(ranked, k) for k in HITS}
    return {**hits, "mrr": reciprocal_rank(ranked), "ndcg@10": ndcg(ranked, 10)}


def rankings(
    queries: NDArray[Any], corpus: NDArray[Any], relevant: Sequence[Iterable[int]],
    left_out: Sequence[int | None] | None = None, rows: int = 512,
) -> Iterable[NDArray[np.bool_]]:  # fmt: skip
    """`ranked` of some queries at a time: by the product of `queries` (n, d) and `corpus` (m, d), ties in the order of
    the corpus. `relevant` are each query's numbers in the corpus; `left_out` is one that it is not to find: itself.
    """
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ corpus.T
        truth = np.zeros(scores.shape, dtype=bool)
        for i in range(len(scores)):
            truth[i, list(relevant[start + i])] = True
            own = left_out[start + i] if left_out is not None else None
            if own is not None:
                scores[i, own], truth[i, own] = -np.inf, False
        yield np.take_along_axis(truth, np.argsort(-scores, axis=1, kind="stable"), axis=1)


def retrieval(
    queries: NDArray[Any], corpus: NDArray[Any], relevant: Sequence[Iterable[int]],
    left_out: Sequence[int | None] | None = None,
) -> dict[str, float]:  # fmt: skip
    """`metrics` over all queries, without a table of all of them at once."""
    total: dict[str, float] = {}
    for ranked in rankings(queries, corpus, relevant, left_out):
        for name, value in metrics(ranked).items():
            total[name] = total.get(name, 0.0) + value * len(ranked)
    return {name: value / len(queries) for name, value in total.items()}


def groups(keys: Sequence[Any], found: Sequence[Sequence[int]]) -> Mapping[Any, set[int]]:
    """All that any query of a key has found relevant, by key."""
    made: dict[Any, set[int]] = {}
    for key, numbers in zip(keys, found, strict=True):
        made.setdefault(key, set()).update(numbers)
    return made
