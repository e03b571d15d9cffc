"""Masked language modelling: the tokens that were hidden are predicted from all others (Devlin et al. 2019).

    loss = - Σ_{i hidden} log p(x_i | the text with 15 % of its tokens hidden)      80 % mask, 10 % random, 10 % as is

Which tokens are hidden is drawn anew each time a text is seen, from torch's generator, so that a resumed run goes on
exactly; in eval mode it is drawn from the text itself, so that scores are of the same questions every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

from featherweight.core.errors import InputError, Problem
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example


@dataclass(frozen=True, repr=False)
class MaskedLM(Task):
    """Cross-entropy (nats) on the hidden tokens, `rate` of each text's own; a unit is a hidden token. Scores are of the
    hidden tokens; a prediction is the text with its mask tokens filled in."""

    rate: float = 0.15

    auto: ClassVar[str] = "AutoModelForMaskedLM"
    shapes: ClassVar[tuple[str, ...]] = ("text",)
    fills: ClassVar[bool] = True
    exclusive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise InputError(Problem("no such share of hidden tokens", "rate", "above 0, below 1", str(self.rate)))

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        """Inputs with a mask on every token that may be hidden, labels with the tokens themselves."""
        from featherweight.data.corruption import IGNORED, hidden_count

        mask, special = mask_id(tokenizer), set(tokenizer.all_special_ids)
        made = []
        for row in self.ask(examples, tokenizer, length):
            labels = [IGNORED if i in special else i for i in row.input_ids]
            ids = [i if label == IGNORED else mask for i, label in zip(row.input_ids, labels, strict=True)]
            count = sum(label != IGNORED for label in labels)
            made.append(replace(row, input_ids=ids, labels=labels, units=hidden_count(count, self.rate)))
        return made

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_text_all

        return encode_text_all(examples, tokenizer, length)

    def largest(self, length: int) -> Encoded:
        return replace(super().largest(length), labels=[0] * length)

    def pose(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The inputs with some tokens hidden, and what they were (batch, seq), -100 elsewhere."""
        from featherweight.data.corruption import IGNORED, masked
        from featherweight.tasks.heads import inputs
        from featherweight.tasks.modes import inner

        given, labels = inputs(batch), batch["labels"]
        core: Any = inner(model)
        noise = drawn(labels, core.training)
        free = labels != IGNORED
        ids = labels.where(free, given["input_ids"])
        rows = int(core.get_input_embeddings().weight.shape[0])
        given["input_ids"], targets = masked(ids, free, noise, given["input_ids"], rows, self.rate)
        return given, targets

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        from featherweight.tasks.token_loss import IGNORED, token_loss

        given, targets = self.pose(model, batch)
        return token_loss(model, given, targets), (targets != IGNORED).sum()

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        """Loss, units and, per row, which of its hidden tokens were found."""
        from torch.nn.functional import cross_entropy

        from featherweight.tasks.token_loss import IGNORED

        given, targets = self.pose(model, batch)
        logits = model(**given).logits.float()
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        found, hidden = logits.argmax(-1) == targets, targets != IGNORED
        return loss, hidden.sum(), [hit[here].tolist() for hit, here in zip(found, hidden, strict=True)]

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        from featherweight.tasks.heads import inputs

        ids = batch["input_ids"]
        filled = model(**inputs(batch)).logits.argmax(-1).where(ids == mask_id(tokenizer), ids)
        return [text.strip() for text in tokenizer.batch_decode(filled, skip_special_tokens=True)]

    def reference(self, example: Example) -> Any:
        return example.text

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        hits = [hit for row in predictions for hit in row]
        return {"masked_accuracy": sum(hits) / len(hits)}

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"text": prediction}


def mask_id(tokenizer: Any) -> int:
    """Raises InputError for a tokenizer without a mask."""
    found = getattr(tokenizer, "mask_token_id", None)
    if found is None:
        raise InputError(Problem("the tokenizer has no mask token", getattr(tokenizer, "name_or_path", ""),
                                 "a mask_token, as BERT's has", fix="take a masked LM, or CausalLM()"))  # fmt: skip
    return int(found)


def drawn(labels: Tensor, training: bool) -> Tensor:
    """Noise (3, batch, seq) in [0, 1): torch's own in training, else a function of each row's tokens alone."""
    import torch

    if training:
        return torch.rand(3, *labels.shape).to(labels.device)
    noise = torch.zeros(3, *labels.shape)
    for row, own in enumerate(labels.cpu()):
        at = (own >= 0).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(crc32(repr(own[at].tolist()).encode()))
        noise[:, row, at] = torch.rand(3, len(at), generator=generator)
    return noise.to(labels.device)
