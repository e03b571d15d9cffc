"""What the three tasks with a task head share: one forward gives logits, from which loss and predictions are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from featherweight.core.errors import Problem, raise_all

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a batch that a model's forward takes; labels stay with the task."""
    return {name: batch[name] for name in INPUTS if name in batch}


class Headed:
    """Mixin of tasks over a head with one row of logits per text; a unit is a row."""

    auto: ClassVar[str] = "AutoModelForSequenceClassification"

    @abstractmethod
    def target(self, example: Example) -> Any:
        """The label of an example as the loss wants it; None where it is unlabelled."""

    @abstractmethod
    def check(self, examples: Sequence[Example]) -> list[Problem]:
        """See Task.check."""

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_text_all

        raise_all(self.check(examples))
        return encode_text_all(examples, tokenizer, length, [self.target(e) for e in examples])

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_text_all

        return encode_text_all(examples, tokenizer, length)

    @abstractmethod
    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss summed over rows from fp32 logits (batch, outputs) and the batch's labels."""

    @abstractmethod
    def read(self, logits: Tensor) -> list[Any]:
        """One prediction per row of fp32 logits (batch, outputs)."""

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, outputs) in fp32, whatever precision the model computes in."""
        made: Tensor = model(**inputs(batch)).logits
        return made.float()

    def pose(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], None]:
        return inputs(batch), None

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        return self.loss_of(self.logits(model, batch), labels), labels.new_tensor(len(labels))

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        return self.read(self.logits(model, batch))

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        logits, labels = self.logits(model, batch), batch["labels"]
        return self.loss_of(logits, labels), labels.new_tensor(len(labels)), self.read(logits)
