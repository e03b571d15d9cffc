"""Facts as token ids: a template with its subject in it and a hole for the object, and virtual tokens among its words.

    [P][P][P] The capital of [X] is [Y] .
    masked       [CLS] h h h the capital of peru is [MASK] . [SEP]       the object is what stands at the mask
    decoder      <s> h h h The capital of Peru is                        the object is what comes next

Words are the tokens that they are in their place; [P] is the token `pseudo`, whose embeddings P-tuning replaces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featherweight.core.errors import Problem, did_you_mean
from featherweight.data.encode import answer_ids, ids_of, start_ids
from featherweight.data.facts import OBJECT, SUBJECT
from featherweight.data.types import UNTRAINED, Encoded, Example
from featherweight.data.word_windows import end_ids

VIRTUAL = "[P]"
MARKS = re.compile(r"(\[P\]|\[Y\])")
EXAMPLE = 'such as "The capital of [X] is [Y] ."'


def template_of(example: Example, template: str, templates: Mapping[str, str]) -> str:
    """That of its relation, the one for all, or the row's own, in this order."""
    own = example.pair or ""
    return templates.get(own, template) or (own if SUBJECT in own else "")


def problems(example: Example, words: str, templates: Mapping[str, str], decodes: bool, virtual: bool) -> list[Problem]:
    """Why a template cannot be filled."""
    where = example.where
    if not words:
        fix = did_you_mean(example.pair, templates) if example.pair and templates else "give task.template"
        return [Problem("no template for this fact", where, EXAMPLE, repr(example.pair), fix)]
    if SUBJECT not in words or words.count(OBJECT) != 1:
        return [Problem("not a template", where, f"{SUBJECT}, and {OBJECT} once", repr(words))]
    found = []
    if decodes and words.rindex(SUBJECT) > words.index(OBJECT):
        what = "a decoder cannot see what stands behind the object"
        found.append(Problem(what, where, f"{SUBJECT} before {OBJECT}", repr(words), "turn the sentence round"))
    if VIRTUAL in words and not virtual:
        fix = "task.pseudo and method.pseudo: one token id that no text has"
        found.append(Problem("virtual tokens without a token that stands for them", where, got=repr(words), fix=fix))
    return found


@dataclass(frozen=True)
class Probe:
    """How facts are asked of one tokenizer: `hole`, the mask token (None: a decoder), and the id of virtual tokens."""

    tokenizer: Any
    hole: int | None
    pseudo: int | None

    def encoded(self, example: Example, words: str, length: int | None) -> Encoded | Problem:
        """`more["hole"]`: where the object is looked for; `labels`: its token there, none where it is not one token."""
        tokenizer = self.tokenizer
        ids, before, place = list(start_ids(tokenizer)), "", 0
        for piece in MARKS.split(words):
            if piece == OBJECT:
                place = len(ids) if self.hole is not None else len(ids) - 1
                if self.hole is None:
                    break
                ids.append(self.hole)
            elif piece == VIRTUAL:
                ids.append(int(self.pseudo))  # type: ignore[arg-type]
            elif piece.strip():
                ids += self.part(piece.replace(SUBJECT, example.text).rstrip(), len(ids) > len(start_ids(tokenizer)))
            before = before if piece == OBJECT else piece
        ids += end_ids(tokenizer) if self.hole is not None else []
        if length is not None and len(ids) > length:
            return Problem("a fact longer than the model", example.where, f"{length} tokens", str(len(ids)))
        labels = None
        if example.label is not None:
            target = self.target(words, example)
            labels = [UNTRAINED] * len(ids)
            labels[place] = UNTRAINED if target is None else target
        return Encoded(example.where, ids, labels, source=example.source, more={"hole": [place]})

    def part(self, text: str, inside: bool) -> list[int]:
        """The tokens of a piece of text, as they are behind others where it is inside."""
        return answer_ids(self.tokenizer, [("a", text)])[0][1] if inside else ids_of(self.tokenizer, [text])[0]

    def target(self, words: str, example: Example) -> int | None:
        """The object's only token, None where it has more, or is unknown."""
        front = MARKS.sub("", words[: words.index(OBJECT)]).replace(SUBJECT, example.text)
        gap = " " if front[-1:].isspace() else ""
        ids = answer_ids(self.tokenizer, [(front.rstrip(), gap + str(example.label).strip())])[0][1]
        return ids[0] if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else None
