"""METEOR is refused. METEOR 1.5, the figure of the E2E scorer and of papers, is a Java program with WordNet, a stemmer
and paraphrase tables under tuned weights. A Python substitute without those tables gives other numbers under the same
name, so none is offered: run meteor-1.5.jar on the texts that `fw predict` writes."""

from collections.abc import Sequence
from typing import NoReturn

from featherweight.core.errors import InputError, Problem


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NoReturn:
    """Always raises InputError, saying why and what to do."""
    why = "METEOR 1.5 needs Java, WordNet and paraphrase tables; run meteor-1.5.jar on the texts that fw predict writes"
    raise InputError(Problem("METEOR is not computed here", "metrics", fix=why))
