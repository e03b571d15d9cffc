"""TinyBERT's data augmentation: copies of each text in which some words are others that fit.

    for each of N copies, for each word:  with probability p one of its K candidates, else the word itself

In context for words of one token, by nearest embedding for words of several (words.py); N = 20, p = 0.4, K = 15.
Candidates are those of the text as it was given, as in the published code, so that a text costs one pass over its
words whatever N. The published code looks at the masked text beside the plain one and takes GloVe for nearest words;
here the masked text stands alone, as in the paper's algorithm, and the table is the model's own.

Source: Jiao et al. 2019 (TinyBERT), algorithm 1 and appendix A, arXiv:1909.10351.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from featherweight.core.errors import Problem, raise_all
from featherweight.data.load import Data, load
from featherweight.data.types import Row, Rows
from featherweight.distill.augment.words import Lexicon, Place
from featherweight.tasks import MaskedLM
from featherweight.tasks.check import check_vocabulary
from featherweight.train.seeds import derive


@dataclass(frozen=True)
class Augment:
    """The options of `augmented`, by its names; `model` a path."""

    model: str
    samples: int = 20
    share: float = 0.4
    words: int = 15
    context: bool = True


TEXTS = ("text", "text_pair")  # roles


def augmented(data: Any, model: Any, *, samples: int = 20, share: float = 0.4, words: int = 15, context: bool = True,
              seed: int = 0, columns: Any = None, tokenizer: Any = None, batch: int = 64) -> Data:  # fmt: skip
    """`data` with up to `samples` further copies of each training row: other texts, the same label.

    data: what `fw.train` takes, of texts or pairs of texts. Dev and test rows stay as they are.
    model: a masked LM, live or a path; with context=False any encoder, whose nearest words are taken everywhere.
    share: of the words that are replaced on average. words: candidates of each. Of a pair each copy changes one text.

    Copies equal to their row or to each other are dropped. The same seed gives the same copies, whatever other rows
    there are. Raises InputError for data without texts and a model that cannot fill them in.
    """
    loaded = data if isinstance(data, Data) else load(data, columns)
    raise_all(unfit(loaded, samples, share))
    live = opened(model, context)
    lexicon = Lexicon(live, tokenizer or live.tokenizer, words, context, batch)
    check_vocabulary(live, lexicon.tokenizer)
    made: list[Row] = []
    for row in loaded.train:
        made += [row, *copies(row, loaded, lexicon, samples, share, seed)]
    return replace(loaded, train=Rows(made), notes=(*loaded.notes, f"{len(loaded.train):,} rows became {len(made):,}"))


def opened(model: Any, context: bool) -> Any:
    """The live model, or the one of a path."""
    if not isinstance(model, str | os.PathLike):
        return model
    from featherweight.interop import load_base

    return load_base(model, MaskedLM() if context else None)


def unfit(data: Data, samples: int, share: float) -> list[Problem]:
    found = []
    if "text" not in data.shape.columns:
        got = f"{data.shape.name}: {', '.join(data.shape.columns.values())}"
        found.append(Problem("there is no text whose words may change", "data", "rows of one text or two", got))
    if samples < 1:
        found.append(Problem("no copies", "samples", "at least 1", str(samples)))
    if not 0 < share <= 1:
        found.append(Problem("no share of words", "share", "above 0, at most 1", str(share)))
    return found


def copies(row: Row, data: Data, lexicon: Lexicon, samples: int, share: float, seed: int) -> list[Row]:
    """Rows with another text each, in the order they were drawn."""
    columns = [data.shape.columns[role] for role in TEXTS if role in data.shape.columns]
    texts = [str(row.fields[column]) for column in columns]
    places = [lexicon.candidates(text) for text in texts]
    chance = Random(derive(seed, "augment", *texts))
    seen, made = {tuple(texts)}, []
    for n in range(samples):
        which = n % len(columns)
        changed = tuple(rewritten(t, p, share, chance) if i == which else t
                        for i, (t, p) in enumerate(zip(texts, places, strict=True)))  # fmt: skip
        if changed not in seen:
            seen.add(changed)
            fields = {**row.fields, **dict(zip(columns, changed, strict=True))}
            made.append(Row(fields, row.where, row.source))
    return made


def rewritten(text: str, places: Sequence[tuple[Place, list[str]]], share: float, chance: Random) -> str:
    """A text with each word replaced with probability `share`; what stands between words stays."""
    parts, at = [], 0
    for place, candidates in places:
        if candidates and chance.random() <= share:
            parts += [text[at : place.start], chance.choice(candidates)]
            at = place.end
    return "".join([*parts, text[at:]])
