"""Long and short texts as windows of about equal length, for training on plain text without much padding.

text \\n text \\n te|xt \\n text ...        joined in their order, cut in front of a word, nothing lost
"""

from collections.abc import Iterable, Iterator
from typing import Any

GROUP = 64  # texts joined at once


def windows(texts: Iterable[str], tokenizer: Any, length: int, joint: str = "\n") -> list[str]:
    """Strings that the tokenizer makes at most about `length` tokens of, its special tokens among them.

    A window ends in front of a token that begins a word, where there is one in its second half. Texts are joined by
    `joint`, and their order and all their words are kept.
    """
    room = length - len(tokenizer("")["input_ids"])
    texts = list(texts)
    groups = (joint.join(texts[i : i + GROUP]) for i in range(0, len(texts), GROUP))
    return [window for group in groups for window in cut(group, tokenizer, room) if window]


def cut(text: str, tokenizer: Any, room: int) -> Iterator[str]:
    """One text in windows of at most `room` tokens."""
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    starts, at = [first for first, _ in places], 0
    while at < len(starts):
        end = at + room
        if end < len(starts):
            words = [i for i in range(at + room // 2, end + 1) if begins(text, starts[i])]
            end = words[-1] if words else end
        yield text[starts[at] : starts[end] if end < len(starts) else len(text)].strip()
        at = end


def begins(text: str, place: int) -> bool:
    """Whether a word begins at this character."""
    return place == 0 or text[place].isspace() or text[place - 1].isspace()
