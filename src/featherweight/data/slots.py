"""A text with a slot and its choices to token ids, for masked language models: as many masks as the longest choice has.

    It was {{ mask }}.     [CLS] it was [MASK] [MASK] . [SEP]     choices: great | not bad

The slot is written `{{ mask }}`, or as the tokenizer's own mask token; a text without one is put into a pattern. A
choice has the tokens that it has in the slot's place, behind what stands before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.choices import checked
from featherweight.data.encode import answer_ids, start_ids
from featherweight.data.types import Encoded, Example

SLOT = "{{ mask }}"  # as texts have it
MASK = re.compile(r"\{\{\s*mask\s*\}\}")
TEXT = re.compile(r"\{\{\s*text\s*\}\}")


def encode_slots(examples: Sequence[Example], tokenizer: Any, length: int | None, pattern: str) -> list[Encoded]:
    """Texts with their masks, at the places `more["slots"]`. Texts that leave no room lose tokens: those before the
    slot first, the farthest before the nearest. Raises InputError over every row: several slots, no room for a choice.
    """
    mask = mask_of(tokenizer)
    texts = [slotted(e.text, mask, pattern) for e in examples]
    want = "one {{ mask }}"
    raise_all(Problem("a text with several slots", e.where, want, str(text.count(mask)))
              for e, text in zip(examples, texts, strict=True) if text.count(mask) > 1)  # fmt: skip
    pairs = [in_place(text.partition(mask)[0], c) for e, text in zip(examples, texts, strict=True) for c in e.choices]
    answers = iter(answer_ids(tokenizer, pairs))
    found = [
        fitted(e, text, [next(answers)[1] for _ in e.choices], tokenizer, length)
        for e, text in zip(examples, texts, strict=True)
    ]
    raise_all(f for f in found if isinstance(f, Problem))
    return checked([f for f in found if not isinstance(f, Problem)])


def mask_of(tokenizer: Any) -> str:
    """The mask as text. Raises InputError for a tokenizer without one."""
    found = getattr(tokenizer, "mask_token", None)
    if found is None:
        fix = "take Choices() or Seq2SeqChoices(), or a masked language model's tokenizer"
        where = getattr(tokenizer, "name_or_path", "tokenizer")
        raise InputError(Problem("the tokenizer has no mask token", where, "that of a masked LM", fix=fix))
    return str(found)


def slotted(text: str, mask: str, pattern: str) -> str:
    """The text with its slot as the mask token; one without a slot inside of the pattern."""
    made = MASK.sub(lambda _: mask, text)
    return made if mask in made else MASK.sub(lambda _: mask, TEXT.sub(lambda _: text.strip(), pattern))


def in_place(before: str, choice: str) -> tuple[str, str]:
    """(what stands before the slot, the choice with the white space that leads it)."""
    bare = before.rstrip()
    return bare, (" " if bare and bare != before else "") + choice.strip()


def fitted(
    example: Example, text: str, choices: list[list[int]], tokenizer: Any, length: int | None
) -> Encoded | Problem:
    """One row, at most `length` tokens with all its masks; a Problem where these alone are too many."""
    ids, mask = list(tokenizer(text, verbose=False)["input_ids"]), int(tokenizer.mask_token_id)
    if ids.count(mask) != 1:
        return Problem("the tokenizer does not keep the slot", example.where, f"one {tokenizer.mask_token}",
                       str(ids.count(mask)))  # fmt: skip
    at, slots = ids.index(mask), max(map(len, choices), default=1)
    front = len(start_ids(tokenizer))
    back = len(tokenizer("a")["input_ids"]) - front - len(tokenizer("a", add_special_tokens=False)["input_ids"])
    before, behind = ids[front:at], ids[at + 1 : len(ids) - back]
    excess = max(0, len(ids) - 1 + slots - length) if length is not None else 0
    if excess > len(before) + len(behind):
        room = (length or 0) - front - back
        return Problem("a choice is longer than there are slots for", example.where, f"at most {room} tokens",
                       str(slots), "raise length, or rephrase the choice")  # fmt: skip
    lost = min(excess, len(before))
    before, behind = before[lost:], behind[: len(behind) - (excess - lost)]
    start = front + len(before)
    whole = [*ids[:front], *before, *[mask] * slots, *behind, *ids[len(ids) - back :]]
    places = {"slots": list(range(start, start + slots))}
    return Encoded(example.where, whole, example.label, None, excess, example.source, choices, places)
