"""What the three tasks with a task head share: one forward gives logits, from which loss and predictions are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a batch that a model's forward takes; labels stay with the task."""
    return {name: batch[name] for name in INPUTS if name in batch}


class Headed:
    """Mixin of tasks over a head with one row of logits per text; a unit is a row."""

    auto: ClassVar[str] = "AutoModelForSequenceClassification"

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
