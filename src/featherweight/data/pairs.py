"""Pairs to train embeddings on, made of what there is: labelled rows, labelled pairs, or plain passages.

labels      a text with another of its label                                    (banking77: two of one intent)
pairs       the two texts of a row whose label says that they belong together; hard negatives are those of which
            another row says that they do not                                   (NLI: Gao et al. 2021, arXiv:2104.08821)
passages    a sentence with the rest of its passage              (inverse cloze task, Lee et al. 2019, arXiv:1906.00300)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.data.types import Example

if TYPE_CHECKING:
    from featherweight.data.load import Data

SENTENCE = re.compile(r"(?<=[.!?])\s+")


def pairs_by_label(examples: Sequence[Example], seed: int = 0, negatives: int = 0) -> list[Example]:
    """Each text with another text of its label, and with `negatives` texts of other labels, all drawn by `seed`. The
    label stays with the pair: texts of one label are then no negatives of each other.

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
        made.append(Example(e.where, e.text, label=e.label, source=e.source,
                            choices=(random.choice(mates), *random.sample(others, negatives))))  # fmt: skip
    return some(made, examples, "no label has two texts", "rows with labels that recur")


def pairs_of_pairs(examples: Sequence[Example], positive: Iterable[str]) -> list[Example]:
    """The pairs whose label is in `positive`, each with the texts that rows of other labels pair its first text with.

    Raises InputError for a label that no row has.
    """
    wanted, seen = [str(p) for p in positive], list(dict.fromkeys(str(e.label) for e in examples))
    unknown = [p for p in wanted if p not in seen]
    if unknown or not wanted:
        where = examples[0].where if examples else "data"
        fix = did_you_mean(unknown[0], seen) if unknown else "name it"
        got = listed([repr(p) for p in unknown])
        raise InputError(Problem("no such label of pairs that belong together", where, listed(seen), got, fix))
    refused: dict[str, dict[str, None]] = {}
    for e in examples:
        if str(e.label) not in wanted:
            refused.setdefault(e.text, {})[e.pair or ""] = None
    made = []
    for e in examples:
        if str(e.label) in wanted and e.pair:
            others = (text for text in refused.get(e.text, ()) if text != e.pair)
            made.append(Example(e.where, e.text, source=e.source, choices=(e.pair, *others)))
    return some(made, examples, "no row has two texts", "pairs")


def pairs_of_passages(examples: Sequence[Example], seed: int = 0, sentences: int | None = None) -> list[Example]:
    """One sentence of each passage, drawn by `seed`, with the passage without it. A passage is a whole text, or so many
    `sentences` of it in a row. Passages of one sentence are left out; raises InputError where all are."""
    if sentences is not None and sentences < 2:
        raise InputError(Problem("too few sentences for a passage", "sentences", "2 or more", str(sentences)))
    random, made = Random(seed), []
    for e in examples:
        whole = [s for s in SENTENCE.split(e.text.strip()) if s]
        size = sentences or max(1, len(whole))
        for passage in (whole[i : i + size] for i in range(0, len(whole), size)):
            if len(passage) < 2:
                continue
            chosen = passage.pop(random.randrange(len(passage)))
            made.append(Example(e.where, chosen, source=e.source, choices=(" ".join(passage),)))
    return some(made, examples, "no text has two sentences", "passages")


def pairs_of(
    data: Data, *, seed: int = 0, negatives: int = 0, positive: Sequence[str] = (), sentences: int | None = None
) -> dict[str, list[Example]]:
    """Pairs of every split of loaded data, by its shape. Raises InputError for a shape that no pairs are made of, and
    for options that it has no use for."""
    name = data.shape.name
    makers: dict[str, Callable[[list[Example]], list[Example]]] = {
        "classification": lambda rows: pairs_by_label(rows, seed, negatives),
        "pair": lambda rows: pairs_of_pairs(rows, positive),
        "text": lambda rows: pairs_of_passages(rows, seed, sentences),
        "contrast": list,
    }
    where = data.name or "data"
    problems = []
    if name not in makers:
        problems.append(Problem("no pairs are made of this", where, f"one of {listed(list(makers))}", name))
    given = {"positive": bool(positive), "sentences": sentences is not None, "negatives": negatives > 0}
    for option, shape in (("positive", "pair"), ("sentences", "text"), ("negatives", "classification")):
        if given[option] and name != shape:
            fix = "name a --model that mines them" if option == "negatives" else ""
            problems.append(Problem(f"nothing to do for rows of shape {name}", option, f"shape {shape}", fix=fix))
    raise_all(problems)
    splits = {split: getattr(data, split) for split in ("train", "valid", "test")}
    return {split: makers[name](rows_to(rows, data)) for split, rows in splits.items() if rows}


def rows_to(rows: Any, data: Data) -> list[Example]:
    from featherweight.data.load import fitting
    from featherweight.data.rows import examples

    return examples(rows, fitting(rows, data.shape))


def some(made: list[Example], examples: Sequence[Example], what: str, expected: str) -> list[Example]:
    """The pairs; raises InputError where there is none."""
    if not made:
        raise InputError(Problem(what, examples[0].where if examples else "data", expected))
    return made


def rows_of(pairs: Iterable[Example]) -> list[dict[str, Any]]:
    """Pairs as a file holds them: anchor, positive, and where they have any, negatives and label."""
    made = []
    for e in pairs:
        row: dict[str, Any] = {"anchor": e.text, "positive": e.choices[0]}
        row |= {"negatives": list(e.choices[1:])} if len(e.choices) > 1 else {}
        made.append(row | ({} if e.label is None else {"label": e.label}))
    return made
