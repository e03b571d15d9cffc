"""A number per row: squared error over a one-output head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from featherweight.core.errors import Problem, raise_all
from featherweight.tasks import metrics
from featherweight.tasks.heads import Headed
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class Regression(Headed, Task):
    """Scores as they stand in the data: no rescaling. A prediction is a float."""

    shapes: ClassVar[tuple[str, ...]] = ("regression",)
    best: ClassVar[tuple[str, bool]] = ("pearson", True)

    def fit(self, examples: Sequence[Example]) -> Self:
        raise_all([Problem("no score in a training row", e.where, "a number") for e in examples if e.label is None]
                  + self.check(examples))  # fmt: skip
        return self

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        return [Problem("not a finite number", e.where, "a score", repr(e.label))
                for e in examples if e.label is not None and not finite(e.label)]  # fmt: skip

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def target(self, example: Example) -> Any:
        return self.reference(example)

    def largest(self, length: int) -> Encoded:
        return replace(super().largest(length), labels=0.0)

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.squeeze(-1) - labels.float()).square().sum()  # labels (batch,)

    def read(self, logits: Tensor) -> list[Any]:
        return logits.squeeze(-1).tolist()

    def reference(self, example: Example) -> Any:
        return None if example.label is None else float(example.label)

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {
            "pearson": metrics.pearson(predictions, references),
            "spearman": metrics.spearman(predictions, references),
            "mse": metrics.mean_squared_error(predictions, references),
        }

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"score": prediction}


def finite(value: Any) -> bool:
    """Whether a field reads as a finite number."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
