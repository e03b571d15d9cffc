"""Span corruption: an encoder-decoder restores what was cut out of a text (Raffel et al. 2020, section 3.1.4).

    input     Thank you <x> me to your party <y> week          15 % of the tokens hidden, in spans of 3 on average
    target    <x> for inviting <y> last </s>
    loss = - Σ_t log p(target_t | input, target_<t)

The spans are drawn anew each time a text is seen, from torch's generator, so that a resumed run goes on exactly; in
eval mode they are drawn from the text itself, so that scores are of the same questions every time.
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
class SpanCorruption(Task):
    """Cross-entropy (nats) on the target's tokens; a unit is one of them. A prediction is the model's text for an input
    with sentinels, greedy, at most `max_new_tokens` tokens."""

    density: float = 0.15
    mean: float = 3.0
    max_new_tokens: int = 64

    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    shapes: ClassVar[tuple[str, ...]] = ("text",)
    generates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.density < 1 or self.mean < 1:
            got = f"density {self.density}, mean {self.mean}"
            raise InputError(Problem("no such spans", "task", "density above 0, below 1; mean from 1", got))

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        """Inputs are whole texts; labels are what the target holds beside the hidden tokens: sentinels and the end."""
        from featherweight.data.corruption import span_counts
        from featherweight.data.encode import encode_text_all, eos_id

        end, marks = eos_id(tokenizer), sentinels(tokenizer)
        rows, made, short = encode_text_all(examples, tokenizer, length), [], []
        for row in rows:
            tokens = len(row.input_ids) - (row.input_ids[-1:] == [end])
            if tokens < 2:
                short.append(Problem("too short to hide a part of it", row.where, "2 tokens", str(tokens)))
                continue
            hidden, spans = span_counts(tokens, self.density, self.mean)
            if spans > len(marks):
                got = f"{spans} spans in {tokens} tokens, {len(marks)} sentinels"
                short.append(Problem("too long for the tokenizer's sentinels", row.where, got=got, fix="lower length"))
            made.append(replace(row, labels=[*marks[:spans], end], units=hidden + spans + 1))
        if short:
            raise InputError(*short)
        return made

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.encode import encode_text_all

        return encode_text_all(examples, tokenizer, length)

    def largest(self, length: int) -> Encoded:
        from featherweight.data.corruption import span_counts

        return replace(super().largest(length), labels=[0] * (span_counts(length - 1, self.density, self.mean)[1] + 1))

    def hide(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(input ids, their mask, target ids with -100 behind the end), each (batch, its own length)."""
        import torch

        from featherweight.data.corruption import IGNORED, spans, split
        from featherweight.tasks.modes import inner

        pairs = []
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            whole, frame = ids[mask.bool()].tolist(), labels[labels != IGNORED].tolist()
            end = whole[-1:] if whole[-1:] == frame[-1:] else []
            text = whole[: len(whole) - len(end)]
            generator = None
            if not inner(model).training:
                generator = torch.Generator().manual_seed(crc32(repr(text).encode()))
            kept, told = split(text, spans(len(text), self.density, self.mean, generator), frame[:-1])
            pairs.append((kept + end, [*told, frame[-1]]))
        device = batch["input_ids"].device
        pad = int(getattr(inner(model).config, "pad_token_id", None) or 0)
        inputs, targets = (filled([p[i] for p in pairs], fill).to(device) for i, fill in ((0, pad), (1, IGNORED)))
        mask = filled([[1] * len(kept) for kept, _ in pairs], 0).to(device)
        return inputs, mask, targets

    def pose(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        from featherweight.tasks.seq2seq import Seq2Seq

        ids, mask, targets = self.hide(model, batch)
        return Seq2Seq().pose(model, {"input_ids": ids, "attention_mask": mask, "labels": targets})

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        from featherweight.tasks.seq2seq import Seq2Seq

        ids, mask, targets = self.hide(model, batch)
        return Seq2Seq().loss(model, {"input_ids": ids, "attention_mask": mask, "labels": targets})

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        from featherweight.tasks.generation import write

        return write(model, batch, tokenizer, self.max_new_tokens)

    def reference(self, example: Example) -> Any:
        return example.text

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {}

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"text": prediction}


def sentinels(tokenizer: Any) -> list[int]:
    """The ids of <extra_id_0>, <extra_id_1> … Raises InputError for a tokenizer without them."""
    known: dict[str, int] = tokenizer.get_vocab()
    found: list[int] = []
    while (mark := f"<extra_id_{len(found)}>") in known:
        found.append(known[mark])
    if not found:
        raise InputError(
            Problem(
                "the tokenizer has no sentinels",
                getattr(tokenizer, "name_or_path", ""),
                "<extra_id_0>, <extra_id_1> … as T5 has them",
                fix="take a T5, or add them",
            )
        )
    return found


def filled(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    from featherweight.data.collate import padded

    return padded(rows, fill, max(map(len, rows)))
