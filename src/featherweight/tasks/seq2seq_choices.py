"""Rank classification with an encoder-decoder, as T-Few does it: the encoder reads each text once, and the decoder
answers with every choice against its states (Liu et al. 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from featherweight.core.errors import raise_all
from featherweight.tasks.choices import Choices
from featherweight.tasks.ranked import COUNT, answer_width
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example
    from featherweight.tasks.shared_context import After


@dataclass(frozen=True, repr=False)
class Seq2SeqChoices(Choices):
    """`Choices` for T5, BART and their kin: scores, losses and answers are the same."""

    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.choices import encode_beside

        raise_all(self.check(examples))
        return encode_beside(examples, tokenizer, length, self.end)

    def largest(self, length: int) -> Encoded:
        width = answer_width(length)
        return replace(Task.largest(self, length), choices=[[0] * width for _ in range(COUNT)])

    def after(self, model: nn.Module, batch: Mapping[str, Tensor]) -> After:
        from featherweight.tasks.shared_context import beside_text

        return beside_text(model, batch["input_ids"], batch["attention_mask"])
