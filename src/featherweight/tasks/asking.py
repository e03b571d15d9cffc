"""A generative example as a question: everything in front of its last answer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featherweight.data.types import Encoded, Example


def asked(example: Example) -> Example:
    """The turns in front of the last answer, none of them trained; plain text is a question as it stands."""
    turns = example.turns
    last = max((i for i, turn in enumerate(turns) if turn.trained), default=len(turns))
    if any(not turn.trained for turn in turns):
        turns = turns[:last]
    return replace(example, turns=tuple(replace(turn, trained=False) for turn in turns))


def answer_of(example: Example) -> str | None:
    """The last answer, stripped; None where there is none: an unlabelled row, or plain text."""
    if example.messages:
        last = example.messages[-1]
        return str(last["content"]).strip() if last["role"] == "assistant" else None
    if all(turn.trained for turn in example.turns) or not example.turns[-1].trained:
        return None
    return example.turns[-1].text.strip()


def chat_prompt(example: Example, tokenizer: Any, length: int | None) -> Encoded:
    """A conversation up to where the assistant speaks next, by the tokenizer's template; cut from its start."""
    from featherweight.data.template import chat_template, rendered
    from featherweight.data.types import UNTRAINED, Encoded

    chat_template(tokenizer)
    turns = list(example.messages)
    turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    text = rendered(example, tokenizer, turns, tokenize=False, add_generation_prompt=True)
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    excess = max(0, len(ids) - length) if length is not None else 0
    ids = ids[excess:]
    return Encoded(example.where, ids, [UNTRAINED] * len(ids), truncated=excess, source=example.source)
