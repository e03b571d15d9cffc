"""Context distillation: the teacher reads a text that the student does not, and the student learns to act as if it did.

    teacher    <s> be brief and formal. ask: …  answer: a b c </s>
    student    <s>                      ask: …  answer: a b c </s>      compared at a b c </s>, aligned from the end

What the teacher reads more is the same tokens at the same place of every row (or in place of the same ones, where a
chat template has a system text of its own): found by encoding rows both ways, and checked on them.
Source: Askell et al. 2021, section 2.2, arXiv:2112.00861; Snell et al. 2022, arXiv:2209.15189.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem
from featherweight.data.encode import ids_of, start_ids
from featherweight.data.types import Example, Turn
from featherweight.tasks.check import position_limit

LOOKED = 32  # rows on which an edit is checked


@dataclass(frozen=True)
class Edit:
    """Put `added` ids at position `at` of every row, in place of `removed` ones."""

    at: int
    removed: int
    added: tuple[int, ...]

    @property
    def longer(self) -> int:
        """How many more tokens the teacher reads."""
        return len(self.added) - self.removed

    def misfits(self, teacher: Any, longest: int) -> list[Problem]:
        """Rows that with the context are longer than the teacher's positions."""
        limit = position_limit(teacher)
        if limit is None or longest + self.longer <= limit:
            return []
        fix = f"length={max(1, limit - self.longer)}, or a shorter context"
        return [Problem("context and rows are longer than the teacher reads", "context", f"{limit} tokens",
                        f"{self.longer} and {longest}", fix)]  # fmt: skip

    def row(self, ids: Sequence[int]) -> list[int]:
        return [*ids[: self.at], *self.added, *ids[self.at + self.removed :]]

    def edited(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's inputs."""
        added = {"input_ids": self.added, "attention_mask": [1] * len(self.added)}
        return {**given, **{name: self.columns(given[name], fill) for name, fill in added.items()}}

    def columns(self, x: Tensor, fill: Sequence[int]) -> Tensor:
        """(batch, seq) -> (batch, seq + longer) with one row of values where the tokens are added."""
        new = x.new_tensor(list(fill)).expand(len(x), -1)
        return torch.cat([x[:, : self.at], new, x[:, self.at + self.removed :]], 1)

    def aligned(self, y: Tensor) -> Tensor:
        """(batch, seq + longer, d) of the teacher -> (batch, seq, d) at the student's tokens; 0 at removed ones."""
        gone = y.new_zeros(len(y), self.removed, y.shape[2])
        return torch.cat([y[:, : self.at], gone, y[:, self.at + len(self.added) :]], 1)


def told(example: Example, context: str) -> Example:
    """The example as the teacher reads it: behind a system message, or behind the text itself."""
    if not example.messages:
        return replace(example, turns=(Turn(context, False), *example.turns))
    first, *rest = example.messages
    if first.get("role") == "system":
        both = f"{context}\n\n{first['content']}"
        return replace(example, messages=({**first, "content": both}, *rest))
    return replace(example, messages=({"role": "system", "content": context}, *example.messages))


def edit_of(task: Any, examples: Sequence[Example], tokenizer: Any, context: str) -> Edit:
    """What `context` adds to every row. Raises InputError for rows that take none, and where it is not the same tokens
    at the same place of all."""
    examples = examples[:LOOKED]
    if not all(e.turns or e.messages for e in examples):
        raise InputError(Problem("these rows take no context", "context", "prompts, instructions or conversations",
                                 repr(task)))  # fmt: skip
    if not context.strip():
        raise InputError(Problem("the context is empty", "context", "a text", repr(context)))
    mine = [row.input_ids for row in task.encode_all(examples, tokenizer, None)]
    theirs = [row.input_ids for row in task.encode_all([told(e, context) for e in examples], tokenizer, None)]
    if mine == theirs:
        raise InputError(Problem("this task does not read a context", "context", got=repr(task)))
    if not any(e.messages for e in examples):  # joined, many tokenizers would begin a row otherwise
        return Edit(len(start_ids(tokenizer)), 0, tuple(ids_of(tokenizer, [context])[0]))
    at = min(shared(a, b) for a, b in zip(mine, theirs, strict=True))
    removed = max(len(a) - at - shared(a[at:][::-1], b[at:][::-1]) for a, b in zip(mine, theirs, strict=True))
    added = theirs[0][at : at + removed + len(theirs[0]) - len(mine[0])]
    edit = Edit(at, removed, tuple(added))
    for example, a, b in zip(examples, mine, theirs, strict=True):
        if edit.row(a) != b or a[at : at + removed] != mine[0][at : at + removed]:
            raise InputError(Problem("the context is not the same tokens in front of every row", example.where,
                                     "a context that ends by itself", fix="end it with a line break"))  # fmt: skip
    return edit


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first entries are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
