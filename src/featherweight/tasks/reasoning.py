"""Chain of thought: a rationale is written before the answer, and the answer is read from behind a mark.

    question ──► rationale mark answer                        gsm8k: "… 48 + 24 = 72 … #### 72"
    answer  = the rest of the line behind the last mark, without $ and thousands' commas and a closing full stop

A text without the mark has no answer: it is "", and wrong. Sources: Wei et al. 2022, arXiv:2201.11903; Kojima et al.
2022 (without examples, "Let's think step by step."), arXiv:2205.11916; the mark is that of Cobbe et al. 2021,
arXiv:2110.14168.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import Problem, raise_all
from featherweight.tasks.causal import CausalLM
from featherweight.tasks.seq2seq import Seq2Seq

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example

MARK = "####"


class Reasoned(str):
    """An answer as text, with the `rationale` that led to it."""

    rationale: str

    def __new__(cls, answer: str, rationale: str) -> Reasoned:
        made = super().__new__(cls, answer)
        made.rationale = rationale
        return made


def parsed(text: str, mark: str = MARK) -> Reasoned:
    """The answer in a text; "" where the mark is missing."""
    rationale, found, rest = text.rpartition(mark)
    if not found:
        return Reasoned("", text.strip())
    lines = rest.strip().splitlines()
    bare = re.sub(r"(?<=\d),(?=\d{3})", "", lines[0].strip() if lines else "").replace("$", "")
    return Reasoned(bare.removesuffix(".").strip(), rationale.strip())


class Thinking:
    """Mixin of generating tasks: predictions and references are what stands behind `mark`."""

    mark: str

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        """Rows whose answer has no rationale before the mark, or nothing behind it."""
        inherited: list[Problem] = super().check(examples)  # type: ignore[misc]
        return inherited + [p for e in examples for p in self.lacks(e)]

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        raise_all(self.check(examples))
        made: list[Encoded] = super().encode_all(examples, tokenizer, length)  # type: ignore[misc]
        return made

    def lacks(self, example: Example) -> list[Problem]:
        from featherweight.tasks.asking import answer_of

        text = answer_of(example)
        if text is None:
            return []
        found = parsed(text, self.mark)
        wanted = f"rationale {self.mark} answer"
        if not found:
            return [Problem("no answer behind the mark", example.where, wanted, repr(text[-40:]))]
        return [] if found.rationale else [Problem("missing rationale", example.where, wanted, repr(text[:40]))]

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        texts: list[str] = super().predict(model, batch, tokenizer)  # type: ignore[misc]
        return [parsed(text, self.mark) for text in texts]

    def reference(self, example: Example) -> Any:
        text: str | None = super().reference(example)  # type: ignore[misc]
        return None if text is None else parsed(text, self.mark)

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Answers compared as they are: 2.5 is not 25, which SQuAD's normalization takes them for."""
        from featherweight.tasks.metrics import accuracy

        return {"answer_match": accuracy([str(p).lower() for p in predictions], [str(r).lower() for r in references])}

    def answer(self, prediction: Any) -> dict[str, Any]:
        return {"text": str(prediction), "rationale": prediction.rationale}


@dataclass(frozen=True, repr=False)
class ChainOfThought(Thinking, CausalLM):
    """`CausalLM` whose rows answer with a rationale, `mark` and the answer; exact match is of the answers alone."""

    mark: str = MARK
    max_new_tokens: int = 256


@dataclass(frozen=True, repr=False)
class Seq2SeqChainOfThought(Thinking, Seq2Seq):
    """`ChainOfThought` for encoder-decoders."""

    mark: str = MARK
    max_new_tokens: int = 256
