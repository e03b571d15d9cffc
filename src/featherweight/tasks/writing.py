"""What tasks that learn to write share: the loss over target tokens, greedy text, and what is compared."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from featherweight.tasks.asking import answer_of
from featherweight.tasks.metrics import exact_match
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class Writing(Task):
    """Cross-entropy (nats) on the targets that `pose` gives; a unit is a target token. A prediction is generated text
    of at most `max_new_tokens` tokens, greedy; it ends in front of `stop`, where one is given."""

    max_new_tokens: int = 128
    stop: str = ""

    generates: ClassVar[bool] = True
    exclusive: ClassVar[bool] = True

    def largest(self, length: int) -> Encoded:
        """With an answer as long as the text."""
        return replace(super().largest(length), labels=[0] * length)

    @abstractmethod
    def pose(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Every unit is a token of this one forward."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        from featherweight.tasks.token_loss import IGNORED, token_loss

        given, targets = self.pose(model, batch)
        return token_loss(model, given, targets), (targets != IGNORED).sum()

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        from featherweight.tasks.generation import write

        return write(model, batch, tokenizer, self.max_new_tokens, self.stop)

    def reference(self, example: Example) -> Any:
        return answer_of(example)

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {"exact_match": exact_match(predictions, [[r] for r in references])}

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"text": prediction}
