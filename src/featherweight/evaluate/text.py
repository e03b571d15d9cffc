"""Scores of generated texts, by named sets of metrics."""

from collections.abc import Callable, Sequence

from featherweight.core.errors import InputError, Problem, did_you_mean
from featherweight.evaluate import metrics

References = Sequence[Sequence[str]]


def e2e(predictions: Sequence[str], references: References) -> dict[str, float]:
    """The E2E NLG Challenge's, METEOR apart."""
    return {
        "bleu": metrics.bleu(predictions, references),
        "nist": metrics.nist(predictions, references),
        "rouge_l": metrics.rouge_l(predictions, references),
        "cider": metrics.cider(predictions, references),
    }


def bleu(predictions: Sequence[str], references: References) -> dict[str, float]:
    return {"bleu": metrics.bleu(predictions, references)}


def exact(predictions: Sequence[str], references: References) -> dict[str, float]:
    return {"exact_match": metrics.exact_match(predictions, references)}


KINDS: dict[str, Callable[[Sequence[str], References], dict[str, float]]] = {
    "e2e": e2e, "rouge": metrics.rouge, "bleu": bleu, "exact": exact, "meteor": metrics.meteor,
}  # fmt: skip


def text_scores(
    predictions: Sequence[str], references: Sequence[str] | References, kind: str = "e2e"
) -> dict[str, float]:
    """Metrics of one set: e2e (bleu nist rouge_l cider), rouge (rouge1 rouge2 rougeL), bleu, or exact (exact_match).

    `references[i]` is the reference, or the list of them, of `predictions[i]`. Raises InputError for an unknown set,
    different lengths, no rows, or a row without a reference.
    """
    check_kind(kind)
    grouped = [[refs] if isinstance(refs, str) else list(refs) for refs in references]
    if len(grouped) != len(predictions) or not grouped:
        raise InputError(
            Problem("nothing to compare", "references", f"{len(predictions)}, at least 1", str(len(grouped)))
        )
    empty = [i for i, refs in enumerate(grouped) if not refs]
    if empty:
        raise InputError(*(Problem("no reference", f"references[{i}]", "at least one text") for i in empty))
    return KINDS[kind](predictions, grouped)


def check_kind(kind: str) -> None:
    """Raise InputError for a set of text metrics that is not known, or that is refused."""
    if kind not in KINDS:
        raise InputError(Problem("unknown text metrics", "metrics", got=repr(kind), fix=did_you_mean(kind, KINDS)))
    if kind == "meteor":
        metrics.meteor([], [])
