"""An encoder reads one text, a decoder writes another: T5, BART and their kin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from featherweight.core.errors import Problem, raise_all
from featherweight.tasks.asking import asked
from featherweight.tasks.writing import Writing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class Seq2Seq(Writing):
    """Cross-entropy (nats) on the target's tokens; a unit is a target token. A prediction is generated text of at most
    `max_new_tokens` tokens, greedy; it ends in front of `stop`, where one is given."""

    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    trains: ClassVar[str] = "a completion"
    shapes: ClassVar[tuple[str, ...]] = ("completion", "instruction")

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        return [Problem("no input text", e.where, "a prompt and its completion", "text alone")
                for e in examples if all(turn.trained for turn in e.turns)]  # fmt: skip

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_seq2seq

        raise_all(self.check(examples))
        return [encode_seq2seq(e, tokenizer, length) for e in examples]

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        return self.encode_all([asked(e) for e in examples], tokenizer, length)

    def pose(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        from featherweight.tasks.modes import inner

        labels = batch["labels"]  # (batch, target seq): position t of the decoder predicts labels[:, t]
        shifted = inner(model).prepare_decoder_input_ids_from_labels(labels)  # type: ignore[operator]
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return {**given, "decoder_input_ids": shifted}, labels
