"""Questions over passages as token ids, in windows where both are longer than the model.

    [CLS] q [SEP] passage from token 0 [SEP] │ [CLS] q [SEP] passage from token s [SEP] │ …

The windows overlap, so that an answer across the end of one is whole in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.encode import ids_of
from featherweight.data.types import UNTRAINED, Encoded, Example

Columns = dict[str, list[int]]


def check_offsets(tokenizer: Any) -> None:
    """Raise InputError for a tokenizer that does not say where in the text its tokens stand."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(Problem("the tokenizer does not say where its tokens stand", "tokenizer",
                                 "one with a tokenizer.json", type(tokenizer).__name__))  # fmt: skip


def encode_spans(
    examples: Sequence[Example], tokenizer: Any, length: int | None, overlap: int, empty: bool
) -> list[Encoded]:
    """Windows of each question and its passage, one after the other. `more`: "begins" and "ends", where a token stands
    in the passage, by characters (-1 both: no answer, where `empty`); "starts" and "finals", the places of the tokens
    that begin and end an answer, in a labelled row."""
    check_offsets(tokenizer)
    problems: list[Problem] = []
    whole = tokenizer([e.text for e in examples], [e.pair for e in examples], verbose=False, truncation=False,
                      return_offsets_mapping=True)  # fmt: skip
    made = []
    for i, e in enumerate(examples):
        found, which = whole, [i]
        if length is not None and len(whole["input_ids"][i]) > length:
            found = cut(e, tokenizer, length, overlap, problems)
            which = list(range(len(found["input_ids"]))) if found is not None else []
        if which:
            made.append(one_row(e, [window(found, k, tokenizer, empty) for k in which], problems))
    raise_all(problems)
    return made


def cut(e: Example, tokenizer: Any, length: int, overlap: int, problems: list[Problem]) -> Any:
    """The tokenizer's windows of a long passage, None where the question leaves no room for it."""
    room = length - len(ids_of(tokenizer, [e.text])[0]) - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 2:
        what = "the question leaves no room for its context"
        problems.append(Problem(what, e.where, got=f"{length} tokens for both", fix="raise length, or shorten it"))
        return None
    return tokenizer([e.text], [e.pair], truncation="only_second", max_length=length, stride=min(overlap, room // 2),
                     return_overflowing_tokens=True, return_offsets_mapping=True, verbose=False)  # fmt: skip


def window(found: Any, k: int, tokenizer: Any, empty: bool) -> Columns:
    """One window's ids, and where in the passage each of its tokens stands."""
    ids, parts = list(found["input_ids"][k]), found.sequence_ids(k)
    places = [place if part == 1 else (UNTRAINED, UNTRAINED)
              for place, part in zip(found["offset_mapping"][k], parts, strict=True)]  # fmt: skip
    if empty:  # the class token says so, or the first one
        places[ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0] = (-1, -1)
    columns = {"ids": ids, "begins": [a for a, _ in places], "ends": [b for _, b in places]}
    return columns | ({"kinds": list(found["token_type_ids"][k])} if "token_type_ids" in found else {})


def one_row(e: Example, windows: Sequence[Columns], problems: list[Problem]) -> Encoded:
    joined = {name: [v for w in windows for v in w[name]] for name in windows[0]}
    ids, kinds = joined.pop("ids"), joined.pop("kinds", None)
    more = {**joined, "windows": [len(w["ids"]) for w in windows]}
    if not any(b >= 0 for b in joined["begins"]):
        problems.append(Problem("the tokenizer has no token of the context", e.where, "text", repr(e.pair)[:60]))
    elif e.label is not None:
        more |= gold(e.label, joined["begins"], joined["ends"])
        if not more["starts"] or not more["finals"]:
            problems.append(Problem("the tokenizer has no token of the answer", e.where, "text", repr(e.label)[:60]))
    return Encoded(e.where, ids, None if e.label is None else 0, kinds, source=e.source, more=more)


def gold(spans: Sequence[tuple[int, str]], begins: Sequence[int], ends: Sequence[int]) -> Columns:
    """Places of the tokens that hold an answer's first and last character; without an answer, those that say so."""
    if not spans:
        none = [i for i, b in enumerate(begins) if b == -1]
        return {"starts": none, "finals": none}
    first, last = {at for at, _ in spans}, {at + len(text) - 1 for at, text in spans}

    def holding(places: set[int]) -> list[int]:
        tokens = enumerate(zip(begins, ends, strict=True))
        return [i for i, (b, e) in tokens if b >= 0 and not places.isdisjoint(range(b, e))]

    return {"starts": holding(first), "finals": holding(last)}
