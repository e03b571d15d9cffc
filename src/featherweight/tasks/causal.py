"""Next-token prediction: prompt/completion, instructions, conversations and plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from featherweight.tasks.asking import asked, chat_prompt
from featherweight.tasks.writing import Writing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class CausalLM(Writing):
    """Cross-entropy (nats) on the trained tokens alone; a unit is a trained token. A prediction is generated text of at
    most `max_new_tokens` tokens, greedy; it ends in front of `stop`, where one is given."""

    auto: ClassVar[str] = "AutoModelForCausalLM"
    trains: ClassVar[str] = "a completion or an assistant's turn"
    shapes: ClassVar[tuple[str, ...]] = ("completion", "instruction", "messages", "text")

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_lm_all

        return encode_lm_all(examples, tokenizer, length)

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_lm_all

        chats = iter([chat_prompt(e, tokenizer, length) for e in examples if e.messages])
        plain = iter(encode_lm_all([asked(e) for e in examples if not e.messages], tokenizer, length))
        return [next(chats if e.messages else plain) for e in examples]

    def pose(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        from featherweight.tasks.heads import inputs
        from featherweight.tasks.token_loss import IGNORED

        labels = batch["labels"]  # (batch, seq)
        if "position_ids" in batch:  # packed rows: a row's first token is not predicted from the row before it
            labels = labels.masked_fill(batch["position_ids"] == 0, IGNORED)
        targets = labels.roll(-1, 1)
        targets[:, -1] = IGNORED
        return inputs(batch), targets
