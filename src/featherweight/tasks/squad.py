"""SQuAD's metrics: pure functions of predicted texts and lists of right ones; "" is no answer.

    F1 of a row = max over its answers of 2 P R / (P + R)

P and R compare bags of normalized words; where a side has no word, F1 is 1 if neither has, else 0.
Sources: Rajpurkar et al. 2016, arXiv:1606.05250; Rajpurkar, Jia and Liang 2018 (no answer), arXiv:1806.03822.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from featherweight.tasks.metrics import normalized


def word_f1(prediction: str, reference: str) -> float:
    """F1 of the words of two texts."""
    found, right = normalized(prediction).split(), normalized(reference).split()
    if not found or not right:
        return float(found == right)
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right))


def answer_scores(prediction: str, references: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) of one row with its best answer; no right answer with a word in it: none is expected."""
    golds = [r for r in references if normalized(r)] or [""]
    exact = max(float(normalized(prediction) == normalized(r)) for r in golds)
    return exact, max(word_f1(prediction, r) for r in golds)


def answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """exact_match and f1 over all rows, 0 to 1."""
    rows = [answer_scores(p, r) for p, r in zip(predictions, references, strict=True)]
    return {"exact_match": sum(e for e, _ in rows) / len(rows), "f1": sum(f for _, f in rows) / len(rows)}


def split_answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The same of the rows that have an answer alone (`answered_*`), and exact_match of the others (`unanswered`)."""
    pairs = list(zip(predictions, references, strict=True))
    some = [(p, r) for p, r in pairs if any(map(normalized, r))]
    none = [(p, r) for p, r in pairs if not any(map(normalized, r))]
    found = {f"answered_{name}": v for name, v in answers(*zip(*some, strict=True)).items()} if some else {}
    return found | ({"unanswered": answers(*zip(*none, strict=True))["exact_match"]} if none else {})


def best_threshold(
    predictions: Sequence[str], references: Sequence[Sequence[str]], margins: Sequence[float]
) -> tuple[float, float]:
    """(threshold, F1): answering the rows whose margin (no answer's score less the best piece's) is at most the
    threshold, and no other, makes the mean F1 highest. Rows of one margin go together."""
    rows = sorted(zip(margins, predictions, references, strict=True), key=lambda row: row[0])
    total = sum(answer_scores("", r)[1] for _, _, r in rows)
    best = (rows[0][0] - 1.0, total)
    for i, (margin, p, r) in enumerate(rows):
        total += answer_scores(p, r)[1] - answer_scores("", r)[1]
        last = i + 1 == len(rows) or rows[i + 1][0] != margin
        if last and total > best[1] + 1e-9:
            best = (margin, total)
    return best[0], best[1] / len(rows)
