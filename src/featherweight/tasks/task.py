"""The contract of a task: what a batch means, what is minimized, what is answered and how answers are scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from featherweight.core.errors import InputError, Problem
from featherweight.core.noun import Noun

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class Task(Noun):
    """Base of every task. Losses are sums with their number of units (rows, or trained tokens), never means: the caller
    divides by the units of the whole accumulated, all-rank batch, so accumulation and ranks are exact."""

    auto: ClassVar[str] = ""
    shapes: ClassVar[tuple[str, ...]] = ()
    best: ClassVar[tuple[str, bool]] = ("loss", False)
    whole: ClassVar[bool] = False  # rows of a batch see each other: cut into no more micro-batches than asked for
    blank: ClassVar[Any] = None  # an encoded label that trains nothing; None: the task has no such
    exclusive: ClassVar[bool] = False  # logits are of one choice among several: labels or words
    fills: ClassVar[bool] = False  # restores hidden tokens of its own input: logits mean something everywhere
    trains: ClassVar[str] = "an answer"  # what a row needs to train anything: told where no row has it
    generates: ClassVar[bool] = False  # predictions are text: costly, made only where they are asked for

    def fit(self, examples: Sequence[Example]) -> Self:
        """The task with what the training examples decide (labels). Raises InputError over every bad example."""
        return self

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        """Everything about these examples that this task cannot take; an unlabelled example is fine."""
        return []

    @property
    def served(self) -> Self | Task:
        """The task of the trained model, on record in what is saved of it: for one that wraps another in training, that
        other."""
        return self

    def model_options(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` that the task decides: num_labels, id2label, problem_type."""
        return {}

    def companions(self, model: Any) -> dict[str, Any]:
        """JSON files by name that tell other libraries, beside a plain model's folder, what this task makes of it."""
        return {}

    def encode(self, example: Example, tokenizer: Any, length: int | None) -> Encoded:
        """Token ids and label of one example, cut to `length` tokens (`.truncated` says how many were cut)."""
        return self.encode_all([example], tokenizer, length)[0]

    @abstractmethod
    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        """`encode` of many, with few calls of the tokenizer. Raises InputError over every bad example."""

    @abstractmethod
    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        """The examples as questions, for `predict`: encoded without their answers, which may be missing."""

    def largest(self, length: int) -> Encoded:
        """A row as full as `length` tokens allow, with as much loss as it can carry, in the form of `encode_all`: what
        is planned with where no data say more."""
        from featherweight.data.types import Encoded

        return Encoded("", [0] * length, 0)

    def begin(self, model: nn.Module, feed: Any, settings: Any, say: Callable[[str], None]) -> None:
        """Called once, before the first step, with all training rows (`train.feed.Feed`) and what the run is asked for:
        for tasks that keep something a row. `say` tells people."""
        return

    def pose(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """What a forward is given, and the target (batch, seq) of each position, -100 where none; None where a unit is
        a row. Raises InputError for a task whose loss is not of one forward."""
        raise InputError(Problem("the loss of this task is not that of one forward", "task", got=repr(self)))

    @abstractmethod
    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss summed over units and the number of units, both 0-d; the sum is fp32 and carries the gradient."""

    def noted(self) -> dict[str, Any]:
        """What the log says of a step beside its loss; asked once after each."""
        return {}

    @abstractmethod
    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        """One prediction per row of the batch. The caller sets eval mode and turns gradients off."""

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        """Loss, units and, where they cost nothing more, the predictions of a labelled batch."""
        return *self.loss(model, batch), None

    @abstractmethod
    def reference(self, example: Example) -> Any:
        """What a perfect prediction of this example is compared with; None where the example is unlabelled."""

    @abstractmethod
    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Metrics over a whole split."""

    @abstractmethod
    def answer(self, prediction: Any) -> dict[str, Any]:
        """What a prediction says, as plain values."""

    def told(self, prediction: Any, example: Example) -> dict[str, Any]:
        """What `fw predict` writes for one row: the answer, with what takes the row itself to say."""
        return self.answer(prediction)
