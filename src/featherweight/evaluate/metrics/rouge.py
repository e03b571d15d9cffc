"""ROUGE (Lin 2004): rouge-score's ROUGE-1/2/L, and ROUGE-L as the COCO and E2E scorers have it."""

from collections.abc import Sequence

from featherweight.evaluate.metrics.tokens import treebank


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F of rouge1, rouge2, rougeL by rouge-score (no stemming), each over the best reference of a row; 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    rows = [scorer.score_multi(list(refs), p) for p, refs in zip(predictions, references, strict=True)]
    return {kind: sum(float(row[kind].fmeasure) for row in rows) / len(rows) for kind in kinds}


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> float:
    """Mean over rows of (1 + β²) P R / (R + β² P), 0 to 1, from longest common subsequences.

    P is the best precision and R the best recall over the references, maybe of different ones: E2E's convention.
    """
    rows = zip(predictions, references, strict=True)
    return sum(row_score(treebank(p), [treebank(r) for r in refs], beta) for p, refs in rows) / len(predictions)


def row_score(output: Sequence[str], refs: Sequence[Sequence[str]], beta: float) -> float:
    common = [longest_common(output, ref) for ref in refs]
    precision = max(common) / len(output) if output else 0.0
    recall = max((c / len(ref) for c, ref in zip(common, refs, strict=True) if ref), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    best = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, best[j] = best[j], diagonal + 1 if x == y else max(best[j], best[j - 1])
    return best[-1]
