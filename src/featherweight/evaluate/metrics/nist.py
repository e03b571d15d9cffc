"""NIST (Doddington 2002): n-grams weigh as much as they inform.

    info(w1..wn) = log2(count(w1..wn-1) / count(w1..wn))      counts over all references of the corpus; words for n = 1
    NIST = Σ_n [ Σ_matched info / n-grams predicted ] · exp(-beta ln²(min(1, predicted words / mean reference words)))

beta makes the penalty 0.5 where the prediction is two thirds of the reference. As in mteval-v13a: matches are clipped
at the most that one reference has, the reference length of a segment is the mean over its references.
"""

import math
from collections import Counter
from collections.abc import Sequence

from featherweight.evaluate.metrics.tokens import mteval, ngrams

BETA = math.log(2) / math.log(1.5) ** 2


def nist(predictions: Sequence[str], references: Sequence[Sequence[str]], order: int = 5) -> float:
    """Corpus NIST of mteval-v13a tokens, case-insensitive, multi-reference; 0 and up."""
    outputs = [mteval(p) for p in predictions]
    targets = [[mteval(r) for r in refs] for refs in references]
    info = information(targets, order)
    total = sum(gain(outputs, targets, info, n) for n in range(1, order + 1))
    wanted = sum(sum(map(len, refs)) / len(refs) for refs in targets)
    return total * penalty(sum(map(len, outputs)) / wanted) if wanted else 0.0


def information(targets: Sequence[Sequence[Sequence[str]]], order: int) -> dict[tuple[str, ...], float]:
    """Bits of each n-gram of the references."""
    counts: Counter[tuple[str, ...]] = Counter()
    for refs in targets:
        for ref in refs:
            counts[()] += len(ref)
            for n in range(1, order + 1):
                counts.update(ngrams(ref, n))
    return {gram: math.log2(counts[gram[:-1]] / seen) for gram, seen in counts.items() if gram}


def gain(
    outputs: Sequence[Sequence[str]], targets: Sequence[Sequence[Sequence[str]]],
    info: dict[tuple[str, ...], float], n: int,
) -> float:  # fmt: skip
    """Information of the matched n-grams per predicted n-gram."""
    matched, made = 0.0, 0
    for output, refs in zip(outputs, targets, strict=True):
        said = ngrams(output, n)
        most = Counter[tuple[str, ...]]()
        for ref in refs:
            most |= ngrams(ref, n)
        matched += sum(count * info[gram] for gram, count in (said & most).items())
        made += said.total()
    return matched / made if made else 0.0


def penalty(ratio: float) -> float:
    """1 for long enough output, 0.5 at two thirds of the length, 0 for none."""
    return math.exp(-BETA * math.log(min(1.0, ratio)) ** 2) if ratio > 0 else 0.0
