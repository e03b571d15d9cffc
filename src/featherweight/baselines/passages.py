"""Retrieved passages in front of each question (retrieval augmentation; Lewis et al. 2020, arXiv:2005.11401, without
training).

    [lead ␣] p_1 ␣ … ␣ p_k ␣ question            p_1 … p_k the k of the corpus nearest to the question, the best first
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featherweight.baselines.near import WORDS, Encoder, nearest
from featherweight.baselines.prompts import Prompts, answer, before, fitted, question, room, source
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.types import Example

if TYPE_CHECKING:
    from torch import nn

    from featherweight.tasks.task import Task


def with_passages(
    model: nn.Module, data: Any, corpus: Any, passages: int = 3, *, embedder: Encoder = WORDS, separator: str = "\n\n",
    lead: str = "", task: Task | None = None, tokenizer: Any = None, length: int | None = None,
    split: str | None = None, columns: Any = None,
) -> Prompts:  # fmt: skip
    """The rows of `data` behind the `passages` nearest of `corpus` (a list of texts, or a file with one per row), for
    every verb and for `in_context` on top.

    `embedder` is "words", an encoder or its folder. A row's question alone is looked up, its answer never, and a
    passage that is the row itself (its question, with or without its answer) is passed over. Passages that `model` has
    no room for are dropped whole, the least near first, and counted. Raises InputError for a corpus that is empty or
    too small.
    """
    rows, texts = source(data, split, columns), corpus_of(corpus)
    asked = [question(row) for row in rows]
    check(rows, asked, texts, passages)
    fits = room(model, rows, task, tokenizer, length)
    places = {collapsed(text): i for i, text in enumerate(texts)}
    own = [{places[text] for text in itself(row) if text in places} for row in rows]
    picked = nearest(asked, texts, passages, embedder, own) if passages else [[] for _ in rows]

    def render(row: Example, used: list[int]) -> Example:
        pieces = [lead] * bool(lead and used) + [texts[i] for i in used]
        return before(row, "".join(piece + separator for piece in pieces)) if pieces else row

    return fitted(rows, picked, render, fits, "passage")


def itself(row: Example) -> tuple[str, str]:
    """A row as a passage would hold it."""
    return collapsed(question(row)), collapsed(f"{question(row)} {answer(row) or ''}")


def collapsed(text: str) -> str:
    return " ".join(text.split())


def corpus_of(corpus: Any) -> list[str]:
    """The passages, each once. Raises InputError for what holds none."""
    if isinstance(corpus, str | os.PathLike):
        from featherweight.evaluate.source import questions

        texts = [question(e) for e in questions(corpus)]
    else:
        raise_all(Problem("not a text", f"corpus[{i}]", "text", type(t).__name__)
                  for i, t in enumerate(corpus) if not isinstance(t, str))  # fmt: skip
        texts = list(corpus)
    found: dict[str, str] = {}
    for text in texts:
        if text.strip():
            found.setdefault(collapsed(text), text.strip())
    if not found:
        raise InputError(Problem("no passages", "corpus", "a file or a list of texts"))
    return list(found.values())


def check(rows: Sequence[Example], asked: Sequence[str], texts: Sequence[str], passages: int) -> None:
    found = [
        Problem("nothing to look up", row.where, "a question") for row, a in zip(rows, asked, strict=True) if not a
    ]
    if not 0 <= passages <= len(texts):
        found.append(Problem("no such number of passages", "passages", f"0 to {len(texts)}", str(passages)))
    raise_all(found)
