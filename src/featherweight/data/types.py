"""The five forms that data takes on its way to a model: Row, Example (of Turns), Encoded, Batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

UNTRAINED = -100  # the label that torch's cross-entropy ignores


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file; `where` is `file.csv:17`, the 1-based line on which the record starts."""

    fields: dict[str, Any]
    where: str
    source: int = 0  # which file of a mixture


class Rows(list[Row]):
    """A list of rows with `notes`: what the reader decided by itself and the user should know."""

    def __init__(self, rows: Iterable[Row] = (), notes: Iterable[str] = ()):
        super().__init__(rows)
        self.notes = tuple(notes)


@dataclass(frozen=True, slots=True)
class Turn:
    """A piece of a generative example, with or without loss."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Example:
    """One shape for all of it; unused parts stay empty. Plain text fills both `text` and `turns`."""

    where: str
    text: str = ""
    pair: str | None = None
    label: Any = None  # str | float | tuple[str, ...] | None (unlabelled)
    turns: tuple[Turn, ...] = ()  # prompt/completion, instruction, plain text
    messages: tuple[dict[str, Any], ...] = ()  # rendered with the tokenizer's own chat template
    choices: tuple[str, ...] = ()  # answers to `text`, of which `label` is the number of the right one
    words: tuple[str, ...] = ()  # a text that is cut into words already, with a tag for each as `label`
    source: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example. `labels`: token ids (-100 where untrained), else int, float or list[float].

    `more` holds what else a task needs, whole numbers by the name of their tensor: with "windows", `input_ids` are
    several inputs one after the other, of these lengths."""

    where: str
    input_ids: list[int]
    labels: Any
    token_type_ids: list[int] | None = None
    truncated: int = 0  # tokens cut
    source: int = 0
    choices: list[list[int]] | None = None  # token ids of each answer to choose from
    more: dict[str, list[int]] | None = None
    units: int | None = None  # of loss, where the labels do not say


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors by the model's argument names, and where each row came from."""

    tensors: dict[str, Tensor]
    where: list[str]
