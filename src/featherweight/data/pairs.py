"""Pairs to train embeddings on, made of what there is: labelled rows, or plain passages.

labels      a text with another of its label                                    (banking77: two of one intent)
passages    a sentence with the rest of its passage (inverse cloze task, Lee et al. 2019, arXiv:1906.00300)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any

from featherweight.core.errors import InputError, Problem
from featherweight.data.types import Example

SENTENCE = re.compile(r"(?<=[.!?])\s+")


def pairs_by_label(examples: Sequence[Example], seed: int = 0, negatives: int = 0) -> list[Example]:
    """Each text with another text of its label, and with `negatives` texts of other labels, all drawn by `seed`.

    Texts that stand alone in their label are left out; raises InputError where all do, or where there are fewer
    texts of other labels than asked for.
    """
    random = Random(seed)
    by_label: dict[Any, dict[str, None]] = {}
    for example in examples:
        by_label.setdefault(example.label, {})[example.text] = None
    made = []
    for e in examples:
        mates = [text for text in by_label[e.label] if text != e.text] if e.label is not None else []
        if not mates:
            continue
        others = [text for label, texts in by_label.items() if label != e.label for text in texts] if negatives else []
        if len(others) < negatives:
            raise InputError(Problem("too few texts of other labels", e.where, f"{negatives}", str(len(others))))
        made.append(Example(e.where, e.text, label=0, source=e.source,
                            choices=(random.choice(mates), *random.sample(others, negatives))))  # fmt: skip
    if not made:
        where = examples[0].where if examples else "data"
        raise InputError(Problem("no label has two texts", where, "rows with labels that recur"))
    return made


def pairs_of_passages(examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """One sentence of each text, drawn by `seed`, with the text without it. Texts of one sentence are left out; raises
    InputError where all are."""
    random, made = Random(seed), []
    for e in examples:
        sentences = [s for s in SENTENCE.split(e.text.strip()) if s]
        if len(sentences) < 2:
            continue
        chosen = sentences.pop(random.randrange(len(sentences)))
        made.append(Example(e.where, chosen, label=0, source=e.source, choices=(" ".join(sentences),)))
    if not made:
        where = examples[0].where if examples else "data"
        raise InputError(Problem("no text has two sentences", where, "passages"))
    return made
