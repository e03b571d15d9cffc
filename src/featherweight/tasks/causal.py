"""Next-token prediction: prompt/completion, instructions, conversations and plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from featherweight.tasks.metrics import exact_match
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class CausalLM(Task):
    """Cross-entropy (nats) on the trained tokens alone; a unit is a trained token. A prediction is generated text of at
    most `max_new_tokens` tokens, greedy."""

    max_new_tokens: int = 128

    auto: ClassVar[str] = "AutoModelForCausalLM"
    shapes: ClassVar[tuple[str, ...]] = ("completion", "instruction", "messages", "text")
    generates: ClassVar[bool] = True

    def encode(self, example: Example, tokenizer: Any, length: int | None) -> Encoded:
        from featherweight.data.encode import encode_lm

        return encode_lm(example, tokenizer, length)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        from featherweight.tasks.heads import inputs
        from featherweight.tasks.token_loss import IGNORED, token_loss

        labels = batch["labels"]  # (batch, seq)
        if "position_ids" in batch:  # packed rows: a row's first token is not predicted from the row before it
            labels = labels.masked_fill(batch["position_ids"] == 0, IGNORED)
        targets = labels.roll(-1, 1)
        targets[:, -1] = IGNORED
        return token_loss(model, inputs(batch), targets), (targets != IGNORED).sum()

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        from featherweight.tasks.generation import continue_prompts

        return continue_prompts(model, prompts(batch), tokenizer, self.max_new_tokens)

    def reference(self, example: Example) -> Any:
        texts = [turn.text for turn in example.turns if turn.trained]
        if example.messages:
            texts = [str(m["content"]) for m in example.messages[-1:] if m.get("role") == "assistant"]
        return "".join(texts).strip() if texts else None

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {"exact_match": exact_match(predictions, [[r] for r in references])}

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"text": prediction}


def prompts(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """The ids of each row in front of its first trained token: all of them where no token is trained."""
    ids = batch["input_ids"]  # (batch, seq)
    mask = batch.get("attention_mask")
    real = ids.new_ones(ids.shape) if mask is None else mask
    labels = batch.get("labels")
    rows = []
    for r in range(len(ids)):
        end = ids.shape[1] if labels is None else next(iter((labels[r] != -100).nonzero().flatten().tolist()), None)
        rows.append(ids[r, :end][real[r, :end] > 0].tolist())
    return rows
