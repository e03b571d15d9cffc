"""An encoder reads one text, a decoder writes another: T5, BART and their kin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from featherweight.core.errors import Problem, raise_all
from featherweight.tasks.asking import answer_of, asked
from featherweight.tasks.metrics import exact_match
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class Seq2Seq(Task):
    """Cross-entropy (nats) on the target's tokens; a unit is a target token. A prediction is generated text of at most
    `max_new_tokens` tokens, greedy; it ends in front of `stop`, where one is given."""

    max_new_tokens: int = 128
    stop: str = ""

    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    shapes: ClassVar[tuple[str, ...]] = ("completion", "instruction")
    generates: ClassVar[bool] = True
    exclusive: ClassVar[bool] = True

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        return [Problem("no input text", e.where, "a prompt and its completion", "text alone")
                for e in examples if all(turn.trained for turn in e.turns)]  # fmt: skip

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_seq2seq

        raise_all(self.check(examples))
        return [encode_seq2seq(e, tokenizer, length) for e in examples]

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        return self.encode_all([asked(e) for e in examples], tokenizer, length)

    def largest(self, length: int) -> Encoded:
        """With an answer as long as the text."""
        return replace(super().largest(length), labels=[0] * length)

    def pose(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        from featherweight.tasks.modes import inner

        labels = batch["labels"]  # (batch, target seq): position t of the decoder predicts labels[:, t]
        shifted = inner(model).prepare_decoder_input_ids_from_labels(labels)  # type: ignore[operator]
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return {**given, "decoder_input_ids": shifted}, labels

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        from featherweight.tasks.token_loss import IGNORED, token_loss

        given, labels = self.pose(model, batch)
        return token_loss(model, given, labels), (labels != IGNORED).sum()

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        from featherweight.tasks.generation import write

        return write(model, batch, tokenizer, self.max_new_tokens, self.stop)

    def reference(self, example: Example) -> Any:
        return answer_of(example)

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {"exact_match": exact_match(predictions, [[r] for r in references])}

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"text": prediction}
