"""Multiple choice with a head: each choice is read with the text, one output scores it.

    p(i | x) = softmax_i  v · h([CLS] x [SEP] c_i [SEP])
    loss     = -log p(answer)

Source: Zellers et al. 2018 (SWAG), arXiv:1808.05326, as Devlin et al. 2019 train it, arXiv:1810.04805, section 4.4.
Rows are those of rank classification (`Choices`), which needs no head but a language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from featherweight.core.errors import Problem, raise_all
from featherweight.tasks.ranked import COUNT, Ranked, unanswered
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class MultipleChoice(Ranked, Task):
    """Rows of a text and any number of choices; a unit is a row. A prediction is the probability of each choice of its
    row, in order; an answer's `label` is the number of the choice, from 0."""

    auto: ClassVar[str] = "AutoModelForMultipleChoice"
    shapes: ClassVar[tuple[str, ...]] = ("choices",)
    best: ClassVar[tuple[str, bool]] = ("accuracy", True)

    def fit(self, examples: Sequence[Example]) -> Self:
        raise_all([*unanswered(examples), *self.check(examples)])
        return self

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        return [Problem("nothing to choose from", e.where, "a text with choices") for e in examples if not e.choices]

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        """A row's inputs one after the other, each text with a choice."""
        from featherweight.data.encode import encode_text_all

        raise_all(self.check(examples))
        pairs = [replace(e, pair=choice) for e in examples for choice in e.choices]
        found = iter(encode_text_all(pairs, tokenizer, length))
        return [joined(e, [next(found) for _ in e.choices]) for e in examples]

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        return self.encode_all([replace(e, label=None) for e in examples], tokenizer, length)

    def largest(self, length: int) -> Encoded:
        from featherweight.data.types import Example

        return joined(Example("", label=0), [super().largest(length)] * COUNT)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, choices) in fp32, -inf where there is none."""
        from featherweight.tasks.windows import Windows

        windows = Windows.of(batch)
        given = {name: tensor[:, None] for name, tensor in windows.inputs(batch).items()}  # one choice each
        scores: Tensor = model(**given).logits
        return windows.beside(scores[:, 0].float(), len(batch["input_ids"]), float("-inf"))

    def loss_of(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels, reduction="sum"), labels.new_tensor(len(labels))

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.loss_of(self.logits(model, batch), batch["labels"])

    def read(self, logits: Tensor) -> list[Any]:
        counts = logits.isfinite().sum(1).tolist()
        return [row[:n] for row, n in zip(logits.softmax(1).tolist(), counts, strict=True)]

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        return self.read(self.logits(model, batch))

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        logits = self.logits(model, batch)
        return *self.loss_of(logits, batch["labels"]), self.read(logits)


def joined(example: Example, rows: Sequence[Encoded]) -> Encoded:
    """The choices' inputs as windows of one row."""
    kinds = [kind for row in rows for kind in row.token_type_ids or ()]
    return replace(
        rows[0], input_ids=[i for row in rows for i in row.input_ids], token_type_ids=kinds or None,
        labels=example.label, truncated=sum(row.truncated for row in rows),
        more={"windows": [len(row.input_ids) for row in rows]},
    )  # fmt: skip
