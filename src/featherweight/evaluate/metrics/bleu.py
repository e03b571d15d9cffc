"""BLEU (Papineni et al. 2002) by sacrebleu."""

from collections.abc import Sequence
from typing import Any


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4, 0 to 1: mteval-v13a tokens, case-insensitive, any number of references per prediction, the closest
    reference length, exponential smoothing where an order has no match: E2E's conventions."""
    import sacrebleu

    most = max(map(len, references))
    streams: list[Any] = [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
    return (
        float(sacrebleu.corpus_bleu(list(predictions), streams, lowercase=True, tokenize="13a", force=True).score) / 100
    )
