"""Entities in tagged words, counted as conlleval counts them: right where type, first and last word are.

    I-PER I-PER O B-PER I-PER B-PER     IOB1: B only between neighbors of one type; IOB2: every entity opens with it
    B-LOC E-LOC S-ORG                   BIOES (BILOU's L and U are E and S)

One rule reads them all. An entity opens at B or S, and at I or E behind O, behind a closed one (E, S) or behind another
type; it goes on as long as nothing opens and no O follows. Tags without such a letter are entities of one word, but for
O (conlleval's option -r).

    precision = right / found     recall = right / there     F1 = 2 right / (found + there)

Source: Tjong Kim Sang and Buchholz 2000, arXiv:cs/0009008 (the CoNLL shared tasks' conlleval).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

LETTER = re.compile(r"([BIESLU])-(.+)")
ALIKE = {"L": "E", "U": "S"}
Entity = tuple[str, int, int]  # type, first word, last word
Tags = Sequence[str]


def lettered(tags: Iterable[str]) -> bool:
    """Whether all tags are O or a letter with a type."""
    return all(tag == "O" or LETTER.fullmatch(tag) for tag in tags)


def parsed(tag: str, letters: bool) -> tuple[str, str]:
    """(letter, type); O has neither."""
    if tag == "O":
        return "O", ""
    found = LETTER.fullmatch(tag) if letters else None
    return (ALIKE.get(found[1], found[1]), found[2]) if found else ("S", tag)


def entities(tags: Tags, letters: bool = True) -> list[Entity]:
    """Every entity of a sentence, in order."""
    found: list[Entity] = []
    before, kind = "O", ""
    for i, (letter, of) in enumerate(parsed(tag, letters) for tag in tags):
        opens = letter in "BS" or (letter in "IE" and (before in "OES" or of != kind))
        if opens:
            found.append((of, i, i))
        elif letter != "O":
            found[-1] = (of, found[-1][1], i)
        before, kind = letter, of
    return found


def entity_scores(predictions: Sequence[Tags], references: Sequence[Tags]) -> dict[str, float]:
    """precision, recall, f1 over all entities, accuracy over all words, and f1/TYPE of each type; 0 to 1."""
    letters = lettered(tag for tags in (*predictions, *references) for tag in tags)
    right, found, there = Counter[str](), Counter[str](), Counter[str]()
    for made, wanted in zip(predictions, references, strict=True):
        a, b = set(entities(made, letters)), set(entities(wanted, letters))
        for count, kept in ((found, a), (there, b), (right, a & b)):
            count.update(of for of, _, _ in kept)
    words = [p == r for made, wanted in zip(predictions, references, strict=True)
             for p, r in zip(made, wanted, strict=True)]  # fmt: skip
    kinds = sorted({*found, *there})
    return {
        "precision": share(right.total(), found.total()),
        "recall": share(right.total(), there.total()),
        "f1": share(2 * right.total(), found.total() + there.total()),
        "accuracy": share(sum(words), len(words)),
    } | {f"f1/{of}": share(2 * right[of], found[of] + there[of]) for of in kinds}


def share(a: float, b: float) -> float:
    return a / b if b else 0.0
