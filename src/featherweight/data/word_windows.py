"""Tagged words as token ids, in windows of whole words where they are longer than the model.

    [CLS] words 0 … b [SEP] │ [CLS] words a … c [SEP] │ …      a < b: they overlap

A word's tag stands at its first token, once: in the window where the word has most around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featherweight.core.errors import Problem, raise_all
from featherweight.data.encode import start_ids
from featherweight.data.span_windows import check_offsets
from featherweight.data.types import UNTRAINED, Encoded, Example


def encode_words(
    examples: Sequence[Example], tokenizer: Any, length: int | None, overlap: int, tags: dict[str, int]
) -> list[Encoded]:
    """Windows of whole words. `more["words"]`: the number of the word that a token begins, in the window where it has
    most around it (-100 elsewhere); `labels`: the number of its tag there."""
    check_offsets(tokenizer)
    front, end = start_ids(tokenizer), end_ids(tokenizer)
    made, problems = [], []
    for e, groups in zip(examples, words_of([e.words for e in examples], tokenizer), strict=True):
        room = length - len(front) - len(end) if length is not None else None
        if room is not None and room < 1:
            problems.append(Problem("no room for a word", e.where, got=f"{length} tokens", fix="raise length"))
            continue
        lost = sum(max(0, len(ids) - room) for ids, _ in groups) if room is not None else 0
        groups = [(ids[:room], min(head, len(ids[:room]) - 1)) for ids, head in groups]
        made.append(tagged_row(e, groups, cuts([len(ids) for ids, _ in groups], room, overlap), front, end, tags, lost))
    raise_all(problems)
    return made


def tagged_row(
    e: Example, groups: Sequence[tuple[list[int], int]], runs: Sequence[tuple[int, int]], front: list[int],
    end: list[int], tags: dict[str, int], lost: int,
) -> Encoded:  # fmt: skip
    ids: list[int] = []
    words: list[int] = []
    mine = owners(runs)
    for k, (a, b) in enumerate(runs):
        ids += front
        words += [UNTRAINED] * len(front)
        for w in range(a, b):
            tokens, head = groups[w]
            ids += tokens
            words += [w if i == head and mine[w] == k else UNTRAINED for i in range(len(tokens))]
        ids += end
        words += [UNTRAINED] * len(end)
    labels = None if e.label is None else [UNTRAINED if w < 0 else tags[e.label[w]] for w in words]
    sizes = [len(front) + len(end) + sum(len(groups[w][0]) for w in range(a, b)) for a, b in runs]
    return Encoded(e.where, ids, labels, None, lost, e.source, more={"words": words, "windows": sizes})


def words_of(rows: Sequence[Sequence[str]], tokenizer: Any) -> list[list[tuple[list[int], int]]]:
    """Each word's tokens as they are in the text of all, and which of them is its first; a word that the tokenizer
    drops is its unknown token."""
    found = tokenizer([" ".join(words) for words in rows], add_special_tokens=False, verbose=False, truncation=False,
                      return_offsets_mapping=True)  # fmt: skip
    made = []
    for k, words in enumerate(rows):
        at = [i for i, word in enumerate(words) for _ in range(len(word) + 1)]  # the word of a character or its space
        spaces = {sum(len(w) + 1 for w in words[:i]) - 1 for i in range(1, len(words))}
        groups: list[tuple[list[int], int]] = [([], -1) for _ in words]
        held: list[int] = []  # a space of its own goes with the word behind it
        for token, (a, b) in zip(found["input_ids"][k], found["offset_mapping"][k], strict=True):
            held.append(token)
            if b <= a or b - 1 in spaces:
                continue
            ids, head = groups[at[b - 1]]
            groups[at[b - 1]] = ([*ids, *held], head if head >= 0 else len(ids) + len(held) - 1)
            held = []
        made.append([(ids, head) if ids else ([unknown(tokenizer)], 0) for ids, head in groups])
    return made


def unknown(tokenizer: Any) -> int:
    return int(next(i for i in (tokenizer.unk_token_id, tokenizer.eos_token_id, 0) if i is not None))


def end_ids(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts behind a text."""
    bare, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    return list(full[len(start_ids(tokenizer)) + len(bare) :])


def cuts(sizes: Sequence[int], room: int | None, overlap: int) -> list[tuple[int, int]]:
    """Runs of words of at most `room` tokens; each but the first repeats at most `overlap` tokens, and half the room,
    of the one before it."""
    if room is None or sum(sizes) <= room:
        return [(0, len(sizes))]
    runs, a = [], 0
    while True:
        b, used = a, 0
        while b < len(sizes) and used + sizes[b] <= room:
            used += sizes[b]
            b += 1
        runs.append((a, b))
        if b == len(sizes):
            return runs
        back, shared = b, 0
        while back > a + 1 and shared + sizes[back - 1] <= min(overlap, room // 2):
            back -= 1
            shared += sizes[back]
        a = back


def owners(runs: Sequence[tuple[int, int]]) -> list[int]:
    """Word by word, the run in which it has most words around it on its poorer side; the earlier of equals. The ends of
    the text are no lack."""
    last = runs[-1][1]

    def around(w: int, k: int) -> int:
        a, b = runs[k]
        return min(w - a if a else last, b - 1 - w if b < last else last)

    return [max((k for k, (a, b) in enumerate(runs) if a <= w < b), key=lambda k: around(w, k)) for w in range(last)]
