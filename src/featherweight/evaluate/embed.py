"""`embed`: texts as vectors. `mine`: pairs with the negatives that the model at hand finds hardest.

    hard(q) = the passages p nearest to q with  e(q)·e(p) < below · e(q)·e(p⁺)        none that belongs to q

`below` under 1 leaves out passages about as near as the positive one: most of those are right and merely unlabelled
(Moreira et al. 2024, NV-Retriever, arXiv:2407.15831, section 3: TopK-PercPos, 0.95).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.evaluate import run
from featherweight.evaluate.setting import tokenizer_of
from featherweight.tasks.check import check_length
from featherweight.tasks.embedding import Embedding, key

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from featherweight.data.types import Example


def embed(
    model: nn.Module, texts: Sequence[str], *, tokenizer: Any = None, batch: int = 32, length: int | None = None
) -> NDArray[Any]:
    """(texts, d) of length 1 in fp32: the means of the model's last states. Equal texts are read once. Raises
    InputError for an empty text, and a model with a head."""
    import numpy as np

    from featherweight.data.types import Example

    raise_all(Problem("no text", f"texts[{i}]", "a text that is not empty", repr(text)[:40])
              for i, text in enumerate(texts) if not isinstance(text, str) or not text)  # fmt: skip
    task, tokenizer = Embedding(), tokenizer_of(model, tokenizer)
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    if not place:
        raise InputError(Problem("no text", "texts", "at least one"))
    rows = task.ask([Example("", text) for text in place], tokenizer, check_length(model, length))
    found = np.stack([vector for vector, _ in run.predictions(model, task, rows, tokenizer, batch)])
    made: NDArray[Any] = found.astype(np.float32, copy=False)[[place[text] for text in texts]]
    return made


def mine(
    model: nn.Module, pairs: Sequence[Example], negatives: int = 1, *, corpus: Sequence[str] = (), below: float = 0.95,
    tokenizer: Any = None, batch: int = 32, length: int | None = None,
) -> list[Example]:  # fmt: skip
    """The pairs, each with up to `negatives` hard ones more, nearest first: from all pairs' passages and `corpus`.

    Never a negative: what belongs to the text by its label or its other rows, and the text itself. Raises InputError
    where no pair finds any.
    """
    if negatives < 1 or below <= 0:
        raise InputError(Problem("nothing to mine", "negatives, below", "at least 1, above 0", f"{negatives}, {below}"))
    passages = list(dict.fromkeys([*(e.choices[0] for e in pairs), *corpus]))
    texts = [e.text for e in pairs]
    vectors = embed(model, [*texts, *passages], tokenizer=tokenizer, batch=batch, length=length)
    place = {text: i for i, text in enumerate(passages)}
    own: dict[Any, set[str]] = {}
    for e in pairs:
        own.setdefault(key(e), set()).update((e.text, e.choices[0]))
    made = []
    for e, scores in zip(pairs, products(vectors[: len(texts)], vectors[len(texts) :]), strict=True):
        barred = {e.text, *e.choices, *own[key(e)]}
        bound = below * float(scores[place[e.choices[0]]])
        near = (passages[i] for i in (-scores).argsort(kind="stable") if scores[i] < bound)
        hard = islice((text for text in near if text not in barred), negatives)
        made.append(replace(e, choices=(*e.choices, *hard)))
    if all(len(new.choices) == len(e.choices) for new, e in zip(made, pairs, strict=True)):
        fix = "raise below, or give a corpus"
        raise InputError(Problem("no hard negative found", pairs[0].where if pairs else "pairs", fix=fix))
    return made


def products(queries: NDArray[Any], passages: NDArray[Any], rows: int = 512) -> Iterator[NDArray[Any]]:
    """Row by row of queries · passagesᵀ, without the whole table at once."""
    for start in range(0, len(queries), rows):
        yield from queries[start : start + rows] @ passages.T
