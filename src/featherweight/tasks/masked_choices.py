"""Rank classification with a masked language model: the verbalizers of PET (Schick and Schütze 2021).

    q(y | x) = Π_i p(y_i | P^k(x) with the tokens chosen so far in their slots)         P^k: the pattern with k masks
    next token: the one among those left that is most probable in its slot              k: tokens of the choice y

For the losses all slots are looked at in one pass, P^K(x) for the longest choice, of which a shorter one uses the first
slots; so does prediction without `stepwise`. With choices of one token both are the same, and L_LN is PET's loss, the
cross-entropy of a softmax over the choices' logits; L_LM + L_UL is ADAPET's (Tam et al. 2021, arXiv:2103.11955).
Sources: Schick and Schütze 2021, arXiv:2001.07676; "It's not just size that matters", arXiv:2009.07118, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.tasks.choices import Choices
from featherweight.tasks.ranked import COUNT, answer_width
from featherweight.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded, Example
    from featherweight.tasks.shared_context import After


@dataclass(frozen=True, repr=False)
class MaskedChoices(Choices):
    """`Choices` for BERT, RoBERTa and their kin: a text with one `{{ mask }}`, which every choice is tried in; losses
    and answers are the same. `pattern` takes the texts that have none; `stepwise` predicts choices of several tokens as
    PET does, the most certain token first, for as many passes as they have tokens. There is no end to count."""

    end: bool = False
    pattern: str = "{{ text }} {{ mask }}."
    stepwise: bool = True

    auto: ClassVar[str] = "AutoModelForMaskedLM"
    slotted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        from featherweight.data.slots import MASK, TEXT

        wanted = "one {{ text }} and one {{ mask }}"
        whole = len(MASK.findall(self.pattern)) == len(TEXT.findall(self.pattern)) == 1
        found = [] if whole else [Problem("no such pattern", "task.pattern", wanted, repr(self.pattern))]
        found += [Problem("a slot has no end of text", "task.end", "false", "true")] if self.end else []
        raise_all(found)

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        from featherweight.data.slots import encode_slots

        raise_all(self.check(examples))
        return encode_slots(examples, tokenizer, length, self.pattern)

    def largest(self, length: int) -> Encoded:
        width = answer_width(length)
        slots = {"slots": list(range(length - width, length))}
        return replace(Task.largest(self, length), choices=[[0] * width for _ in range(COUNT)], more=slots)

    def after(self, model: nn.Module, batch: Mapping[str, Tensor]) -> After:
        logits = at_slots(model, batch["input_ids"], batch["attention_mask"], batch["slots"])
        return lambda rows, targets: logits[rows, : targets.shape[1]]

    def answers(self, model: nn.Module, batch: Mapping[str, Tensor], log_p: Tensor) -> Tensor:
        return in_steps(model, batch, log_p) if self.stepwise else log_p


def in_steps(model: nn.Module, batch: Mapping[str, Tensor], log_p: Tensor) -> Tensor:
    """log p (batch, choices, tokens) of each token when it was chosen. `log_p` is what one pass says, which is right
    already where a row has choices of one token alone."""
    import torch

    choices = batch["choices"]
    lengths = (choices >= 0).sum(2)  # (batch, choices)
    made = torch.zeros_like(log_p)
    single = (lengths <= 1) & (lengths.max(1, keepdim=True).values == 1)
    made[single] = log_p[single]
    for k in range(1, int(lengths.max()) + 1):
        of = (lengths == k) & ~single
        for rows, columns in together(of, batch):
            made[rows, columns, :k] = chosen(model, with_slots(batch, rows, k), choices[rows, columns, :k])
    return made


def together(of: Tensor, batch: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, columns) of choices, at most twice as many at a time as the batch has rows."""
    rows, columns = of.nonzero().T
    size = 2 * len(batch["input_ids"])
    if len(rows):
        yield from zip(rows.split(size), columns.split(size), strict=True)


def with_slots(batch: Mapping[str, Tensor], rows: Tensor, k: int) -> dict[str, Tensor]:
    """These rows with only their first `k` masks: the others make way, pads come behind."""
    ids, mask, slots = (batch[name][rows] for name in ("input_ids", "attention_mask", "slots"))
    gone = mask.new_zeros(mask.shape[0], mask.shape[1] + 1)
    gone.scatter_(1, slots[:, k:].masked_fill(slots[:, k:] < 0, mask.shape[1]), 1)
    gone = gone[:, :-1].bool()
    order = gone.long().argsort(dim=1, stable=True)
    kept = mask.masked_fill(gone, 0).gather(1, order)
    wide = int(kept.sum(1).max())
    return {"input_ids": ids.gather(1, order)[:, :wide], "attention_mask": kept[:, :wide], "slots": slots[:, :k]}


def chosen(model: nn.Module, given: dict[str, Tensor], targets: Tensor) -> Tensor:
    """log p (m, k) of `targets` (m, k), each when it was put into its slot: the most probable one first."""
    import torch

    from featherweight.tasks.choice_losses import token_log_probabilities

    ids, slots = given["input_ids"].clone(), given["slots"]
    m, k = targets.shape
    found = torch.zeros(0)
    left, numbers = torch.ones_like(targets, dtype=torch.bool), torch.arange(m, device=targets.device)
    for step in range(k):
        logits = at_slots(model, ids, given["attention_mask"], slots)
        log_p = token_log_probabilities(logits, targets)[0]
        found = log_p.new_zeros(m, k) if step == 0 else found
        best = log_p.masked_fill(~left, -torch.inf).argmax(1)
        found[numbers, best], left[numbers, best] = log_p[numbers, best], False
        ids[numbers, slots[numbers, best]] = targets[numbers, best]
    return found


def at_slots(model: nn.Module, ids: Tensor, mask: Tensor, slots: Tensor) -> Tensor:
    """Logits (batch, slots, V) at `slots` (batch, slots), below 0 where there is none; the head computes no others."""
    import torch

    from featherweight.tasks.token_loss import output_head

    rows, at = torch.arange(len(ids), device=ids.device)[:, None], slots.clamp_min(0)

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, -ids.shape[1] :][rows, at], *args[1:])

    hook = output_head(model).register_forward_pre_hook(pick)
    try:
        made: Tensor = model(input_ids=ids, attention_mask=mask).logits
    finally:
        hook.remove()
    if made.shape[1] != at.shape[1]:
        raise InputError(Problem("the model's head does not work token by token", "model", type(model).__name__))
    return made
