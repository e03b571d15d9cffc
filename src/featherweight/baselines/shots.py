"""In-context learning: examples with their answers in front of each question, no weight changed (Brown et al. 2020).

    [instruction ␣] x_1 y_1 ␣ x_2 y_2 ␣ … ␣ x_k y_k ␣ x                    ␣ the separator

random      drawn anew for each row, as for GPT-3 (arXiv:2005.14165, section 2)
balanced    drawn anew for each row, as many of each answer as k allows
nearest     by the likeness of the questions (Liu et al. 2022, "What makes good in-context examples for GPT-3?",
            arXiv:2101.06804)

A row is never shown itself, nor a row that asks the very same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from featherweight.baselines.near import Encoder, nearest
from featherweight.baselines.prompts import Picked, Prompts, answer, before, fitted, kind, question, room, source
from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all
from featherweight.data.choices import gap
from featherweight.data.types import Example, Turn

if TYPE_CHECKING:
    from torch import nn

    from featherweight.tasks.task import Task

SEPARATOR = "\n\n"  # between examples
SELECT = ("random", "balanced", "nearest")
ORDER = ("last", "first", "shuffled")


@dataclass(frozen=True)
class Layout:
    """How a prompt is written: `order` says where the best example stands ("last": next to the question), `cue` opens
    every answer ("Let's think step by step.")."""

    order: str = "last"
    separator: str = SEPARATOR
    instruction: str = ""
    cue: str = ""
    seed: int = 0

    def check(self) -> None:
        if self.order not in ORDER:
            raise InputError(
                Problem("unknown order", "order", got=repr(self.order), fix=did_you_mean(self.order, ORDER))
            )

    def render(self, row: Example, shots: Sequence[Example], number: int) -> Example:
        """The row behind `shots`, which come best first."""
        shots = list(shots)
        if self.order == "last":
            shots.reverse()
        elif self.order == "shuffled":
            Random(f"{self.seed} order {number}").shuffle(shots)
        row = cued(row, self.cue)
        if row.messages:
            return conversation(row, [cued(shot, self.cue) for shot in shots], self.instruction)
        pieces = [self.instruction] if self.instruction else []
        pieces += [written(cued(shot, self.cue)) for shot in shots]
        text = "".join(piece + self.separator for piece in pieces)
        return before(row, text) if text else row


def in_context(
    model: nn.Module, data: Any, pool: Any, shots: int, *, select: str = "random", embedder: Encoder = None,
    order: str = "last", separator: str = SEPARATOR, instruction: str = "", cue: str = "", task: Task | None = None,
    tokenizer: Any = None, length: int | None = None, seed: int = 0, split: str | None = None, columns: Any = None,
) -> Prompts:  # fmt: skip
    """The rows of `data` behind `shots` examples of `pool` each, for `evaluate` or `predict` with the same task.

    `pool` gives its train split where it has several. Examples that `model` has no room for (its positions, or
    `length`) are dropped whole, the worst first, and counted (`.dropped`). `embedder` ("words", an encoder or its
    folder) is what select="nearest" looks up by. Raises InputError for rows without answers in the pool, rows of
    unlike forms, a pool with fewer rows than `shots`, and examples of which none fits.
    """
    rows, known = source(data, split, columns), source(pool, "train", columns)
    layout = Layout(order, separator, instruction, cue, seed)
    check(rows, known, shots, select, embedder)
    layout.check()
    fits = room(model, rows, task, tokenizer, length)
    raise_all(fits.task.check(known) if shots else ())
    number = {id(row): i for i, row in enumerate(rows)}
    picked = chosen(rows, known, shots, select, embedder, seed)

    def render(row: Example, used: list[int]) -> Example:
        return layout.render(row, [known[j] for j in used], number[id(row)])

    return fitted(rows, picked, render, fits, "example")


def chosen(rows: list[Example], pool: list[Example], k: int, select: str, embedder: Encoder, seed: int) -> Picked:
    """Numbers of the pool's rows for each row, best first. Raises InputError where too few are left to choose from."""
    asked, held = [question(row) for row in rows], [question(row) for row in pool]
    places: dict[str, set[int]] = {}
    for i, text in enumerate(held):
        places.setdefault(text, set()).add(i)
    banned = [places.get(text, set()) for text in asked]
    short = [(row, len(pool) - len(b)) for row, b in zip(rows, banned, strict=True) if len(pool) - len(b) < k]
    if short:
        got = f"{short[0][1]} beside the row itself ({len(short)} such rows)"
        raise InputError(
            Problem("more shots than the pool has rows", short[0][0].where, f"{k}", got, "take fewer shots")
        )
    if not k:
        return [[] for _ in rows]
    if select == "nearest":
        return nearest(asked, held, k, embedder, banned)
    draw = drawn if select == "random" else spread
    answers = [answer(row) for row in pool]
    return [draw(answers, k, b, Random(f"{seed} shots {i}")) for i, b in enumerate(banned)]


def drawn(answers: Sequence[Any], k: int, banned: set[int], random: Random) -> list[int]:
    """`k` of all that are not banned."""
    found = random.sample(range(len(answers)), k + len(banned))
    return [i for i in found if i not in banned][:k]


def spread(answers: Sequence[Any], k: int, banned: set[int], random: Random) -> list[int]:
    """`k`, one of each answer in turn, the answers in random order."""
    groups: dict[Any, list[int]] = {}
    for i, text in enumerate(answers):
        if i not in banned:
            groups.setdefault(text, []).append(i)
    queues = list(groups.values())
    random.shuffle(queues)
    made: list[int] = []
    while len(made) < k:
        made += [queue.pop(random.randrange(len(queue))) for queue in queues[: k - len(made)]]
        queues = [queue for queue in queues if queue]
    return made


def check(rows: list[Example], pool: list[Example], shots: int, select: str, embedder: Encoder) -> None:
    """Raise InputError over everything that no prompt can be made of."""
    found = []
    if shots < 0:
        found.append(Problem("no such number of shots", "shots", "0 or more", str(shots)))
    if select not in SELECT:
        found.append(
            Problem("unknown way to choose shots", "select", got=repr(select), fix=did_you_mean(select, SELECT))
        )
    if select == "nearest" and embedder is None:
        fix = 'embedder="words", or an encoder'
        found.append(Problem("nothing to find the nearest examples by", "embedder", fix=fix))
    used = pool if shots > 0 else []
    form = kind(rows[0])
    found += [Problem("rows of unlike forms", e.where, form, kind(e)) for e in (*rows, *used) if kind(e) != form]
    if form == "text and label":
        fix = "make choices of the labels: fw.as_choices(...), or fw.prompted(...) with templates"
        found.append(Problem("labels that no language model can say", rows[0].where, "text and choices", form, fix))
    else:
        found += [Problem("no answer to show", e.where, "an answered row") for e in used if answer(e) is None]
    raise_all(found)


def cued(example: Example, cue: str) -> Example:
    """The row with `cue` between its question and its answer."""
    if not cue:
        return example
    said = cue if cue[-1:].isspace() else cue + "\n"
    if example.choices:
        return replace(example, text=example.text + gap(example.text, cue) + cue)
    if example.messages:
        return before_answer(example, said)
    last = next((i for i, t in reversed(list(enumerate(example.turns))) if t.trained), len(example.turns))
    return replace(example, turns=(*example.turns[:last], Turn(said, False), *example.turns[last:]))


def before_answer(example: Example, said: str) -> Example:
    """A conversation whose last question ends with the cue: what the assistant says is its own."""
    at = max(i for i, m in enumerate(example.messages) if m["role"] == "user")
    asked = {**example.messages[at], "content": f"{example.messages[at]['content']}\n{said.rstrip()}"}
    return replace(example, messages=(*example.messages[:at], asked, *example.messages[at + 1 :]))


def written(shot: Example) -> str:
    """An answered example as one text (a conversation: what was said in it)."""
    if shot.messages:
        return "\n".join(str(m["content"]) for m in shot.messages)
    if shot.choices:
        said = shot.choices[shot.label]
        return shot.text + gap(shot.text, said) + said.rstrip()
    return "".join(turn.text for turn in shot.turns).rstrip()


def conversation(row: Example, shots: Sequence[Example], instruction: str) -> Example:
    """Examples as earlier turns, behind the row's own system message."""
    own = list(row.messages)
    system = [own.pop(0)] if own[0]["role"] == "system" else []
    if instruction:
        system = [{"role": "system", "content": "\n\n".join([instruction, *(str(s["content"]) for s in system)])}]
    earlier = [m for shot in shots for m in shot.messages if m["role"] != "system"]
    return replace(row, messages=(*system, *earlier, *own))
