"""One label per row, from one text or a pair: cross-entropy over a classification head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.tasks import metrics
from featherweight.tasks.heads import Headed
from featherweight.tasks.labels import label_name, ordered, unseen
from featherweight.tasks.modes import inner
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class Classification(Headed, Task):
    """`labels` in the order of the model's outputs, learned from the training rows when empty; `pair` says that rows
    have two texts. A prediction is the probability of each label, in order. With two labels, `f1` is that of the
    second (1 of 0 and 1, yes of no and yes).

    `pool` is what the head reads: "own", what the model's class made it for, or "mean", the mean of the tokens' last
    states, for sentence encoders trained that way. Saved with the adapter; other libraries that load it do not know."""

    labels: tuple[str, ...] = ()
    pair: bool = False
    pool: str = "own"

    shapes: ClassVar[tuple[str, ...]] = ("classification", "pair")
    best: ClassVar[tuple[str, bool]] = ("accuracy", True)
    exclusive: ClassVar[bool] = True
    blank: ClassVar[Any] = -100  # what cross-entropy ignores

    def fit(self, examples: Sequence[Example]) -> Self:
        raise_all(Problem("no label in a training row", e.where, "a label") for e in examples if e.label is None)
        labels = self.labels or ordered(label_name(e.label) for e in examples)
        if len(labels) < 2:
            raise_all([Problem("fewer than two labels to tell apart", "label", "at least two", repr(labels))])
        fitted = replace(self, labels=labels, pair=any(e.pair is not None for e in examples))
        raise_all(fitted.check(examples))
        return fitted

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        known = set(self.labels)
        names = ((label_name(e.label), e.where) for e in examples if e.label is not None)
        return [unseen(name, self.labels, where) for name, where in names if name not in known] + self.unlike(examples)

    def unlike(self, examples: Sequence[Example]) -> list[Problem]:
        """Single texts where the task has pairs, and pairs where it has single texts."""
        wanted = "two texts, as in training" if self.pair else "one text, as in training"
        return [Problem("a row of another form", e.where, wanted, "one" if self.pair else "two")
                for e in examples if (e.pair is not None) != self.pair]  # fmt: skip

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        raise_all(self.unlike(examples))
        return super().ask(examples, tokenizer, length)

    def model_options(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: i for i, name in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }

    def target(self, example: Example) -> Any:
        return None if example.label is None else self.labels.index(label_name(example.label))

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        from featherweight.interop.pooling import pool_of

        has = pool_of(inner(model))
        if self.pool not in ("own", has):
            fix = "load it for this task: fw.load_base(path, task)"
            raise InputError(Problem("the model's head reads something else", "task.pool", self.pool, has, fix))
        return super().logits(model, batch)

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels, reduction="sum")  # labels (batch,)

    def read(self, logits: Tensor) -> list[Any]:
        return logits.softmax(-1).tolist()

    def reference(self, example: Example) -> Any:
        return None if example.label is None else label_name(example.label)

    def choice(self, prediction: Sequence[float]) -> str:
        """The most probable label."""
        return self.labels[max(range(len(self.labels)), key=prediction.__getitem__)]

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        chosen = [self.choice(p) for p in predictions]
        scores = {
            "accuracy": metrics.accuracy(chosen, references),
            "macro_f1": metrics.macro_f1(chosen, references),
            "matthews": metrics.matthews(chosen, references),
        }
        if len(self.labels) == 2:
            scores["f1"] = metrics.f1(chosen, references, positive=self.labels[1])
        return scores

    def answer(self, prediction: Any) -> dict[str, Any]:
        label = self.choice(prediction)
        named = dict(zip(self.labels, prediction, strict=True))
        return {"label": label, "probability": named[label], "probabilities": named}
