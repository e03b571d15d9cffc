"""Which texts of a pool are nearest to a question: by the cosine of embeddings, or of word counts.

    cos(q, p) = e(q)·e(p)                            e: any encoder, mean of its last states, length 1 (`Embedding`)
    cos(q, p) = Σ_w t_q(w) t_p(w)                    t: tf·idf, idf of the pool alone, length 1

Only questions are compared: neither the answers of the rows that ask nor those of the pool are seen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem

if TYPE_CHECKING:
    from numpy import ndarray

WORDS = "words"
Encoder = Any  # a live encoder, the folder of one or of an embedding adapter, or "words"


def encoder_of(source: Encoder) -> Any:
    """A live encoder (or "words", or None) as it is, one of a folder, or an adapter on its own base."""
    if not isinstance(source, str | os.PathLike) or source == WORDS:
        return source
    from featherweight.interop import load_base, load_model
    from featherweight.tasks import Embedding

    if (Path(source) / "adapter_config.json").is_file():
        return load_model(source)
    return load_base(source, Embedding())


def counts(texts: Sequence[str], pool: Sequence[str]) -> tuple[Any, Any]:
    """tf·idf of both, sparse, (texts, words) and (pool, words)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    rule = TfidfVectorizer(token_pattern=r"\w+")
    try:
        known = rule.fit_transform(pool)
    except ValueError as error:
        raise InputError(Problem("no words to look up by", "pool", "texts with words")) from error
    return rule.transform(texts), known


def similarities(texts: Sequence[str], pool: Sequence[str], by: Encoder) -> ndarray:
    """(texts, pool)."""
    encoder = encoder_of(by)
    if encoder == WORDS:
        ours, theirs = counts(texts, pool)
        return (ours @ theirs.T).toarray()
    from featherweight.evaluate.embed import embed

    return embed(encoder, texts) @ embed(encoder, pool).T


def nearest(
    texts: Sequence[str], pool: Sequence[str], k: int, by: Encoder, banned: Sequence[set[int]]
) -> list[list[int]]:
    """For each text the numbers of the `k` nearest of the pool that are not banned for it, nearest first; equals in
    the pool's order."""
    import numpy as np

    found = []
    order = np.argsort(-similarities(texts, pool, by), axis=1, kind="stable")
    for row, not_these in zip(order, banned, strict=True):
        free = (int(i) for i in row if int(i) not in not_these)
        found.append(list(islice(free, k)))
    return found
