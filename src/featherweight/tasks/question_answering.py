"""Extractive question answering: which piece of the passage answers the question, or that none does.

    log p(s, e) = log softmax(a)_s + log softmax(z)_e           a, z: two outputs per token
    loss        = -1/2 [ log Σ_{s ∈ S} softmax(a)_s + log Σ_{e ∈ E} softmax(z)_e ]

The softmax runs over the passage's tokens in all windows of a row at once, so that pieces of different windows compare
(Clark and Gardner 2018, arXiv:1710.10723: shared norm; one window: Devlin et al. 2019, arXiv:1810.04805). S and E are
the first and last tokens of every right piece; where rows may have no answer, the class tokens of the windows stand for
it and are candidates too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from featherweight.core.errors import Problem, raise_all
from featherweight.tasks import squad
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example

NOWHERE = float("-inf")


class Piece(NamedTuple):
    """The best piece, by its characters, its probability, that of no answer, and log of none's over the piece's."""

    start: int
    end: int
    probability: float
    none: float
    margin: float


@dataclass(frozen=True, repr=False)
class QuestionAnswering(Task):
    """Rows of a question, its context and answers; a unit is a row. Contexts longer than the model are read in windows
    that share `overlap` tokens. A piece has at most `most` tokens.

    `empty`: some rows have no answer (found in the training rows). None is given where log p(none) - log p(best piece)
    is above `threshold`."""

    empty: bool = False
    threshold: float = 0.0
    overlap: int = 128
    most: int = 30

    auto: ClassVar[str] = "AutoModelForQuestionAnswering"
    shapes: ClassVar[tuple[str, ...]] = ("spans",)
    best: ClassVar[tuple[str, bool]] = ("f1", True)

    def fit(self, examples: Sequence[Example]) -> Self:
        raise_all(Problem("no answers in a training row", e.where, "answers") for e in examples if e.label is None)
        fitted = replace(self, empty=self.empty or any(not e.label for e in examples))
        raise_all(fitted.check(examples))
        return fitted

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        found = [Problem("a question without a context", e.where, "both") for e in examples if not e.pair]
        if len(found) == len(examples) > 1:
            fix = "name them: --columns text=…,text_pair=…,answers=…"
            file, want = found[0].where.rpartition(":")[0], "columns question, context, answers"
            found = [Problem("no row has a context", file, want, fix=fix)]
        if not self.empty:
            fix = "train on rows without an answer, or with task.empty"
            found += [Problem("a row without an answer", e.where, "one, as in every row of training", fix=fix)
                      for e in examples if e.label == ()]  # fmt: skip
        return found

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.span_windows import encode_spans

        raise_all(self.check(examples))
        return encode_spans(examples, tokenizer, length, self.overlap, self.empty)

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        return self.encode_all([replace(e, label=None) for e in examples], tokenizer, length)

    def largest(self, length: int) -> Encoded:
        places = {"begins": list(range(length)), "ends": list(range(1, length + 1)), "windows": [length]}
        return replace(super().largest(length), more={**places, "starts": [0], "finals": [0]})

    def log_p(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(2, batch, seq) in fp32: log p of a piece's start and of its end, -inf outside of passages."""
        import torch

        from featherweight.tasks.windows import Windows

        windows, rows = Windows.of(batch), len(batch["input_ids"])
        out: Any = model(**windows.inputs(batch))
        scores = windows.back(torch.stack([out.start_logits, out.end_logits], -1).float(), rows).movedim(-1, 0)
        return scores.masked_fill(batch["begins"] < -1, NOWHERE).log_softmax(2)

    def losses(self, log_p: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch): of each row."""
        from torch.nn.functional import pad

        found = [
            pad(of, (0, 1), value=NOWHERE).gather(1, batch[name].masked_fill(batch[name] < 0, of.shape[1])).logsumexp(1)
            for of, name in zip(log_p, ("starts", "finals"), strict=True)
        ]
        return -(found[0] + found[1]) / 2

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        losses = self.losses(self.log_p(model, batch), batch)
        return losses.sum(), losses.new_tensor(len(losses))

    def read(self, log_p: Tensor, batch: Mapping[str, Tensor]) -> list[Piece]:
        """The best piece of each row."""
        begins, ends = batch["begins"], batch["ends"]
        best, start, more = self.best_pieces(log_p.masked_fill(begins < 0, NOWHERE), window_numbers(batch))
        none = log_p.masked_fill(begins != -1, NOWHERE).logsumexp(2).sum(0)
        first = begins.gather(1, start[:, None])[:, 0].tolist()
        last = ends.gather(1, (start + more)[:, None])[:, 0].tolist()
        numbers = zip(first, last, best.exp().tolist(), none.exp().tolist(), (none - best).tolist(), strict=True)
        return [Piece(*row) for row in numbers]

    def best_pieces(self, log_p: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log p, first token, tokens behind it) of the likeliest piece of each row, in one window; the first of
        equals, by its length and then its place."""
        import torch

        begin, end = log_p
        found = []
        for more in range(min(self.most, end.shape[1])):
            inside = window[:, : window.shape[1] - more] == window[:, more:]
            scores = begin[:, : begin.shape[1] - more] + end[:, more:]
            found.append(scores.masked_fill(~inside, NOWHERE).max(1))
        best, behind = torch.stack([f.values for f in found]).max(0)  # of (tokens behind, batch)
        return best, torch.stack([f.indices for f in found]).gather(0, behind[None])[0], behind

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        return self.read(self.log_p(model, batch), batch)

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        log_p = self.log_p(model, batch)
        losses = self.losses(log_p, batch)
        return losses.sum(), losses.new_tensor(len(losses)), self.read(log_p, batch)

    def reference(self, example: Example) -> Any:
        """The context and the right texts of it."""
        return None if example.label is None else (example.pair, list(dict.fromkeys(t for _, t in example.label)))

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        golds = [texts for _, texts in references]
        pieces = [context[p[0] : p[1]].strip() for p, (context, _) in zip(predictions, references, strict=True)]
        if not self.empty:
            return squad.answers(pieces, golds)
        margins = [p[4] for p in predictions]
        said = ["" if m > self.threshold else t for m, t in zip(margins, pieces, strict=True)]
        threshold, f1 = squad.best_threshold(pieces, golds, margins)
        found = squad.answers(said, golds) | squad.split_answers(said, golds)
        return found | {"best_f1": f1, "best_threshold": threshold}

    def answer(self, prediction: Any) -> dict[str, Any]:
        start, end, probability, none, margin = prediction
        if not self.empty:
            return {"probability": probability, "start": start, "end": end}
        if margin > self.threshold:
            return {"probability": none, "start": None, "end": None, "no_answer": none}
        return {"probability": probability, "start": start, "end": end, "no_answer": none}

    def told(self, prediction: Any, example: Example) -> dict[str, Any]:
        """With the piece itself; "" is no answer."""
        found = self.answer(prediction)
        text = "" if found["start"] is None else str(example.pair)[found["start"] : found["end"]].strip()
        return {"text": text, **found}


def window_numbers(batch: Mapping[str, Tensor]) -> Tensor:
    """(batch, seq): which window of its row a token is of."""
    import torch

    ends = batch["windows"].clamp_min(0).cumsum(1)  # (b, w)
    return (torch.arange(batch["input_ids"].shape[1], device=ends.device)[None, :, None] >= ends[:, None]).sum(2)
