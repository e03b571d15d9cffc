"""A tag for every word: cross-entropy at each word's first token; words have a tag each, tokens behind the first none.

    tokens   [CLS]  Wolf  ##gang  lives  in   Bonn  [SEP]
    words             0             1     2     3
    loss     Σ_w -log p(tag_w | token that begins w)
Source: Devlin et al. 2019, arXiv:1810.04805, section 5.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from featherweight.core.errors import Problem, raise_all
from featherweight.tasks.entities import LETTER, entities, entity_scores, lettered
from featherweight.tasks.labels import ordered, unseen
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example

WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, repr=False)
class TokenClassification(Task):
    """Rows of words with their tags; a unit is a word. A prediction is the tag of each word, in order. Rows longer than
    the model are read in windows of whole words that share `overlap` tokens; each word has its tag from one of them.

    `labels`: the tags in the order of the model's outputs; found in the training rows when empty, and where all are
    lettered (B-PER, I-PER ...) each type with each letter."""

    labels: tuple[str, ...] = ()
    overlap: int = 64

    auto: ClassVar[str] = "AutoModelForTokenClassification"
    shapes: ClassVar[tuple[str, ...]] = ("tokens",)
    best: ClassVar[tuple[str, bool]] = ("f1", True)

    def fit(self, examples: Sequence[Example]) -> Self:
        raise_all(Problem("no tags in a training row", e.where, "a tag per word") for e in examples if e.label is None)
        labels = self.labels or tag_set({tag for e in examples for tag in e.label})
        if len(labels) < 2:
            raise_all([Problem("fewer than two tags to tell apart", "tags", "at least two", repr(labels))])
        fitted = replace(self, labels=labels)
        raise_all(fitted.check(examples))
        return fitted

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        known = set(self.labels)
        strange = [(tag, e.where) for e in examples for tag in dict.fromkeys(e.label or ()) if tag not in known]
        bare = [Problem("a row without words", e.where, "words, with their tags") for e in examples if not e.words]
        return [*(unseen(tag, self.labels, where) for tag, where in strange), *bare]

    def model_options(self) -> dict[str, Any]:
        names = dict(enumerate(self.labels))
        return {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.word_windows import encode_words

        raise_all(self.check(examples))
        return encode_words(examples, tokenizer, length, self.overlap, {name: i for i, name in enumerate(self.labels)})

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        return self.encode_all([replace(e, words=words_of(e), label=None) for e in examples], tokenizer, length)

    def largest(self, length: int) -> Encoded:
        """Of words of one token."""
        more = {"words": list(range(length)), "windows": [length]}
        return replace(super().largest(length), labels=[0] * length, more=more)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, seq, labels) in fp32."""
        from featherweight.tasks.windows import Windows

        windows = Windows.of(batch)
        out: Tensor = model(**windows.inputs(batch)).logits
        return windows.back(out.float(), len(batch["input_ids"]))

    def loss_of(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), (labels >= 0).sum()

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.loss_of(self.logits(model, batch), batch["labels"])

    def read(self, logits: Tensor, words: Tensor) -> list[list[str]]:
        """The likeliest tag of each word, word after word."""
        made = []
        for best, number in zip(logits.argmax(2), words, strict=True):
            places = (number >= 0).nonzero()[:, 0]
            order = places[number[places].argsort()]
            made.append([self.labels[i] for i in best[order].tolist()])
        return made

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        return self.read(self.logits(model, batch), batch["words"])

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        logits = self.logits(model, batch)
        return *self.loss_of(logits, batch["labels"]), self.read(logits, batch["words"])

    def reference(self, example: Example) -> Any:
        return example.label

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return entity_scores(predictions, references)

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"tags": prediction}

    def told(self, prediction: Any, example: Example) -> dict[str, Any]:
        """With the entities, their words and their places; and the words, where the row was a text."""
        words = words_of(example)
        found = [{"type": of, "text": " ".join(words[a : b + 1]), "start": a, "end": b + 1}
                 for of, a, b in entities(prediction, lettered(self.labels))]  # fmt: skip
        return {"tags": prediction, "entities": found, **({} if example.words else {"tokens": list(words)})}


def words_of(example: Example) -> tuple[str, ...]:
    """The words of a row, or of a text: runs of letters and digits, and every other sign by itself."""
    return example.words or tuple(WORD.findall(example.text))


def tag_set(tags: set[str]) -> tuple[str, ...]:
    """All tags there are; of lettered ones every letter seen with every type seen, for a rare one may be in no row."""
    found = [match for tag in tags if (match := LETTER.fullmatch(tag))]
    if not lettered(tags):
        return ordered(tags)
    pairs = {f"{letter}-{of}" for letter in {m[1] for m in found} for of in {m[2] for m in found}}
    return ordered({*tags, *pairs})
