"""Any number of labels per row: binary cross-entropy, a label is given where its probability is >= 0.5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from featherweight.core.errors import Problem, raise_all
from featherweight.tasks import metrics
from featherweight.tasks.heads import Headed
from featherweight.tasks.labels import label_name, ordered, unseen
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from featherweight.data.types import Encoded, Example

THRESHOLD = 0.5


@dataclass(frozen=True, repr=False)
class MultiLabel(Headed, Task):
    """`labels` in the order of the model's outputs. The loss of a row is the mean over its labels, as in
    BCEWithLogitsLoss, so that the loss does not grow with their number; a unit is a row."""

    labels: tuple[str, ...] = ()

    shapes: ClassVar[tuple[str, ...]] = ("multilabel",)
    best: ClassVar[tuple[str, bool]] = ("macro_f1", True)

    def fit(self, examples: Sequence[Example]) -> Self:
        raise_all(Problem("no labels in a training row", e.where, "a list of labels, possibly empty")
                  for e in examples if e.label is None)  # fmt: skip
        labels = self.labels or ordered(name for e in examples for name in names_of(e))
        if not labels:
            raise_all([Problem("no row has any label", "labels", "at least one label in the training data")])
        fitted = replace(self, labels=labels)
        raise_all(fitted.check(examples))
        return fitted

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        known = set(self.labels)
        return [unseen(n, self.labels, e.where) for e in examples for n in names_of(e) if n not in known]

    def model_options(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: i for i, name in enumerate(self.labels)},
            "problem_type": "multi_label_classification",
        }

    def target(self, example: Example) -> Any:
        given = set(names_of(example))
        return None if example.label is None else [float(name in given) for name in self.labels]

    def largest(self, length: int) -> Encoded:
        return replace(super().largest(length), labels=[0.0] * len(self.labels))

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits as bce

        return bce(logits, labels.float(), reduction="none").mean(-1).sum()  # labels (batch, labels)

    def read(self, logits: Tensor) -> list[Any]:
        return logits.sigmoid().tolist()

    def reference(self, example: Example) -> Any:
        return None if example.label is None else tuple(names_of(example))

    def chosen(self, prediction: Sequence[float]) -> tuple[str, ...]:
        """The labels whose probability reaches the threshold."""
        return tuple(name for name, p in zip(self.labels, prediction, strict=True) if p >= THRESHOLD)

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        chosen = [self.chosen(p) for p in predictions]
        return {
            "macro_f1": metrics.multilabel_f1(chosen, references, self.labels, "macro"),
            "micro_f1": metrics.multilabel_f1(chosen, references, self.labels, "micro"),
            "accuracy": metrics.accuracy([tuple(sorted(c)) for c in chosen], [tuple(sorted(r)) for r in references]),
        }

    def answer(self, prediction: Any) -> dict[str, Any]:
        named = dict(zip(self.labels, prediction, strict=True))
        return {"labels": list(self.chosen(prediction)), "probabilities": named}


def names_of(example: Example) -> list[str]:
    """The distinct label names of a row, in its order; none where it is unlabelled."""
    given = () if example.label is None else example.label
    return list(dict.fromkeys(map(label_name, (given,) if isinstance(given, str) else given)))
