"""CIDEr-D (Vedantam et al. 2015): agreement in rare n-grams.

    g_n(s) = tf-idf of the n-grams of s, idf = ln(rows / rows whose references have the n-gram)
    CIDEr-D = 10/4 Σ_{n=1..4} mean_refs [ min(g(c), g(r)) · g(r) / (|g(c)| |g(r)|) · exp(-(l_c - l_r)² / 2σ²) ]   σ = 6

As in the COCO scorer that E2E uses: term frequencies are counts, an n-gram of no reference counts as met in one row,
lengths are numbers of bigrams. Documents are the rows scored: a corpus of one row has no idf and scores 0.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from featherweight.evaluate.metrics.tokens import ngrams, treebank

ORDER, SIGMA = 4, 6.0
Gram = tuple[str, ...]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D over rows, 0 to 10; tokens are `tokens.treebank`'s."""
    outputs = [treebank(p) for p in predictions]
    targets = [[treebank(r) for r in refs] for refs in references]
    met = rows_with(targets)
    idf = {gram: math.log(len(targets) / rows) for gram, rows in met.items()}
    rarest = math.log(len(targets)) if targets else 0.0
    scores = [row_score(out, refs, idf, rarest) for out, refs in zip(outputs, targets, strict=True)]
    return sum(scores) / len(scores)


def rows_with(targets: Sequence[Sequence[Sequence[str]]]) -> Counter[Gram]:
    """In how many rows any reference has the n-gram."""
    met: Counter[Gram] = Counter()
    for refs in targets:
        met.update({gram for ref in refs for n in range(1, ORDER + 1) for gram in ngrams(ref, n)})
    return met


def row_score(output: Sequence[str], refs: Sequence[Sequence[str]], idf: Mapping[Gram, float], rarest: float) -> float:
    total = 0.0
    for n in range(1, ORDER + 1):
        said = weighted(output, n, idf, rarest)
        total += sum(likeness(said, weighted(ref, n, idf, rarest)) * near(output, ref) for ref in refs) / len(refs)
    return 10 * total / ORDER


def weighted(tokens: Sequence[str], n: int, idf: Mapping[Gram, float], rarest: float) -> dict[Gram, float]:
    return {gram: count * idf.get(gram, rarest) for gram, count in ngrams(tokens, n).items()}


def likeness(said: Mapping[Gram, float], ref: Mapping[Gram, float]) -> float:
    """Cosine with the prediction's weights clipped at the reference's, against repetition."""
    norms = math.hypot(*said.values()) * math.hypot(*ref.values())
    return sum(min(w, ref[g]) * ref[g] for g, w in said.items() if g in ref) / norms if norms else 0.0


def near(output: Sequence[str], ref: Sequence[str]) -> float:
    """The Gaussian penalty on different lengths."""
    bigrams = max(0, len(output) - 1) - max(0, len(ref) - 1)
    return math.exp(-(bigrams**2) / (2 * SIGMA**2))
