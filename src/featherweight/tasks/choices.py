"""Rank classification with a decoder: the choice that the model finds most likely after the text (Brown et al. 2020).

    score(y) = 1/T Σ_t log p(y_t | x, y_<t)          T tokens of the choice y, its end of text among them
    loss     = L_LM + L_UL + L_LN                    see `choice_losses`; prediction: softmax of the scores

The choices of all rows are one batch behind one pass over each row's text: its keys and values are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.tasks.language import KINDS, head_in
from featherweight.tasks.ranked import COUNT, Ranked, answer_width, unanswered
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example
    from featherweight.tasks.shared_context import After


@dataclass(frozen=True, repr=False)
class Choices(Ranked, Task):
    """Rows of a text and choices, ranked by likelihood; a unit is a row. A prediction is the probability of each
    choice among its row's, in order; an answer's `label` is the number of the choice, from 0.

    `language`, `unlikelihood` and `normalized` weigh the losses L_LM, L_UL and L_LN (T-Few: all 1); `per_token` scores
    by the mean over a choice's tokens instead of their sum; `end` counts the end of text among them."""

    language: float = 1.0
    unlikelihood: float = 1.0
    normalized: float = 1.0
    per_token: bool = True
    end: bool = True

    auto: ClassVar[str] = "AutoModelForCausalLM"
    shapes: ClassVar[tuple[str, ...]] = ("choices",)
    best: ClassVar[tuple[str, bool]] = ("accuracy", True)
    slotted: ClassVar[bool] = False  # the choices go into a slot of the text

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        from featherweight.data.slots import MASK

        if examples and not any(e.choices for e in examples):
            fix = "say which templates word them (fw templates), or give rows a text, choices and a label"
            return [Problem("rows without choices", examples[0].where, "a text with choices", "none in any row", fix)]
        found = [Problem("nothing to choose from", e.where, "a text with choices") for e in examples if not e.choices]
        fix = "take MaskedChoices(), or a prompt without {{ mask }}"
        holes = () if self.slotted else (e.where for e in examples if MASK.search(e.text))
        return found + [Problem("a text with a slot is for a masked language model", where, fix=fix) for where in holes]

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.choices import encode_after

        raise_all(self.check(examples))
        return encode_after(examples, tokenizer, length, self.end)

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        return self.encode_all([replace(e, label=None) for e in examples], tokenizer, length)

    def largest(self, length: int) -> Encoded:
        """With `COUNT` choices; a decoder's text leaves them room."""
        width = answer_width(length)
        return replace(super().largest(length - width), choices=[[0] * width for _ in range(COUNT)])

    def after(self, model: nn.Module, batch: Mapping[str, Tensor]) -> After:
        """A function of `rows` and `targets` (choices, tokens), the choices of these rows: (choices, tokens, V), what
        the model expects at each token. See `shared_context`."""
        from featherweight.tasks.shared_context import after_text

        return after_text(model, batch["input_ids"], batch["attention_mask"])

    def tokens(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """log p, log(1 - p) and which are there (batch, choices, tokens), of all rows' choices."""
        import torch

        self.fits(model)
        choices = batch["choices"]  # (batch, choices, tokens), -100 where there is no token
        real = choices >= 0
        there = real.any(2)
        found = self.each(model, batch, there.nonzero()[:, 0], choices[there])
        log_p, log_not = (torch.zeros_like(choices, dtype=f.dtype).index_put((there,), f) for f in found)
        return log_p, log_not, real

    def each(
        self, model: nn.Module, batch: Mapping[str, Tensor], rows: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p and log(1 - p) of `targets` (choices, tokens), the choices of `rows`, as many at once as there is room
        for."""
        import torch

        from featherweight.tasks.choice_losses import token_log_probabilities
        from featherweight.tasks.shared_context import pieces

        after, lengths = self.after(model, batch), (targets >= 0).sum(1)
        parts = list(pieces(lengths, batch["input_ids"].shape[1], vocabulary(model)))
        made = []
        for part in parts:
            wide = int(lengths[part].max())
            ids = targets[part, :wide].clamp_min(0)
            found = token_log_probabilities(after(rows[part], ids), ids)
            made.append([torch.nn.functional.pad(f, (0, targets.shape[1] - wide)) for f in found])
        back = torch.cat(parts).argsort()
        log_p, log_not = (torch.cat(f)[back] for f in zip(*made, strict=True))
        return log_p, log_not

    def fits(self, model: nn.Module) -> None:
        """Raise InputError for a model of another kind."""
        head = head_in(model)
        if head != self.auto:
            others: list[Any] = [t for t in Task.known.values() if issubclass(t, Choices) and t.auto == head]
            fix = f"take {others[0].__name__}()" if others else ""
            wanted = f"{KINDS[self.auto]}, for {type(self).__name__}"
            raise InputError(Problem("the task is for another kind of model", "task", wanted, KINDS[head], fix))

    def scores(self, log_p: Tensor, real: Tensor) -> Tensor:
        """(batch, choices), -inf where there is none."""
        from featherweight.tasks.choice_losses import mean_log_p, summed_log_p

        return (mean_log_p if self.per_token else summed_log_p)(log_p, real)

    def losses(self, log_p: Tensor, log_not: Tensor, real: Tensor, answer: Tensor) -> Tensor:
        """(batch): T-Few's sum. A loss of weight 0 is not computed."""
        from featherweight.tasks import choice_losses as of

        parts = [
            weight * loss(tensor, real, answer)
            for weight, loss, tensor in (
                (self.language, of.language_loss, log_p),
                (self.unlikelihood, of.unlikelihood_loss, log_not),
                (self.normalized, of.normalized_loss, log_p),
            )
            if weight
        ]
        return sum(parts[1:], parts[0])

    def fit(self, examples: Sequence[Example]) -> Self:
        if not (self.language or self.unlikelihood or self.normalized):
            raise InputError(Problem("every loss has weight 0", "task", "language, unlikelihood or normalized above 0"))
        raise_all([*unanswered(examples), *self.check(examples)])
        return self

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        return self.losses(*self.tokens(model, batch), labels).sum(), labels.new_tensor(len(labels))

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        log_p, _, real = self.tokens(model, batch)
        return self.read(self.answers(model, batch, log_p), real)

    def answers(self, model: nn.Module, batch: Mapping[str, Tensor], log_p: Tensor) -> Tensor:
        """log p (batch, choices, tokens) that predictions are made of, from that of the losses."""
        return log_p

    def read(self, log_p: Tensor, real: Tensor) -> list[Any]:
        probabilities = self.scores(log_p, real).softmax(1).tolist()
        return [row[:n] for row, n in zip(probabilities, real.any(2).sum(1).tolist(), strict=True)]

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        log_p, log_not, real = self.tokens(model, batch)
        labels = batch["labels"]
        loss = self.losses(log_p, log_not, real, labels).sum()
        return loss, labels.new_tensor(len(labels)), self.read(self.answers(model, batch, log_p), real)


def vocabulary(model: nn.Module) -> int:
    """Rows of the output head."""
    from featherweight.tasks.token_loss import output_head, rows_of

    return rows_of(output_head(model))
