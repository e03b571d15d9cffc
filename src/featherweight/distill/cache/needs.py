"""What a recipe reads of its teacher, found out by watching it read: logits, hidden states, projections.

One row goes through student and teacher, and through the recipe, with a teacher that notes what is asked of it. So a
cache holds what is needed and no more, whatever the recipe, and its size is known before anything is written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from featherweight.distill.cache.store import Stream
from featherweight.distill.taps import Seen, Tap
from featherweight.tasks.modes import evaluating


@dataclass(frozen=True)
class Needs:
    """`logits` is how many classes they have, 0 where they are not read; the others map a place to its width. With an
    encoder beside the decoder its states are in `read`, and those of the decoder's tokens in `hidden`."""

    logits: int
    hidden: Mapping[int, int]
    read: Mapping[int, int]
    projected: Mapping[tuple[int, str], int]
    states: tuple[int, int] = (0, 0)  # how many hidden states there are, and how many of an encoder

    @property
    def where(self) -> str:
        """What `hidden` has a state of."""
        return "unit" if self.read else "token"

    def streams(self, dtype: str, top: int) -> tuple[Stream, ...]:
        """What is kept of each row; of logits the `top` most probable and the rest as one, where asked for."""
        tokens = {f"read.{i}": w for i, w in self.read.items()}
        tokens |= {f"{role}.{block}": w for (block, role), w in self.projected.items()}
        found = [Stream(f"hidden.{i}", self.where, w, dtype) for i, w in self.hidden.items()]
        found += [Stream(name, "token", width, dtype) for name, width in tokens.items()]
        if self.logits and top:
            found += [Stream("top", "unit", top + 1, dtype), Stream("words", "unit", top, "int32")]
        elif self.logits:
            found += [Stream("logits", "unit", self.logits, dtype)]
        return tuple(found)


def needs(distilled: Any, model: nn.Module, batch: Mapping[str, Tensor]) -> Needs:
    """What the terms of a distillation read of the teacher for this batch."""
    pair, noting = distilled.pair, Noting()
    kept, pair.cache = pair.cache, noting
    try:
        with torch.no_grad(), evaluating(model), torch.random.fork_rng():
            distilled.terms(model, batch)
    finally:
        pair.cache = kept
    seen = noting.seen
    assert seen is not None  # every recipe looks at its teacher once
    return Needs(
        seen.own.shape[-1] if seen.compared else 0,
        seen.hidden.widths(),
        seen.read.widths(),
        {(b, r): x.shape[-1] for b, roles in seen.projected.items() for r, x in roles.all.items() if r in roles.noted},
        (len(seen.hidden), len(seen.read)),
    )  # fmt: skip


class Noting:
    """Stands where the cache stands, computes, and notes what is read."""

    seen: "Noted | None" = None

    def taught(self, tap: Tap, given: Mapping[str, Tensor], targets: Tensor | None) -> Any:
        with torch.no_grad():
            self.seen = Noted(tap(given), targets)
        return self.seen


class Noted:
    """A `Seen` that notes what of it was read."""

    def __init__(self, seen: Seen, targets: Tensor | None):
        from featherweight.distill.pair import at_units

        self.compared = False
        self.heads = seen.heads
        self.own = at_units(seen.logits, targets)
        self.hidden, self.read = Places(seen.hidden), Places(seen.read)
        self.projected = {b: Roles(roles) for b, roles in seen.projected.items()}

    @property
    def logits(self) -> Tensor:
        self.compared = True
        return self.own

    def against(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits, self.logits


class Places:
    """Hidden states, noted by number."""

    def __init__(self, states: tuple[Tensor, ...]):
        self.all, self.noted = states, set[int]()

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, at: SupportsIndex | slice) -> Any:
        numbers = range(len(self.all))[at]
        self.noted |= set(numbers) if isinstance(numbers, range) else {numbers}
        return self.all[at]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self.all)))

    def widths(self) -> dict[int, int]:
        return {i: self.all[i].shape[-1] for i in sorted(self.noted)}


class Roles(dict[str, Tensor]):
    """Projections of one block, noted by role."""

    def __init__(self, roles: Mapping[str, Tensor]):
        super().__init__(roles)
        self.all, self.noted = dict(roles), set[str]()

    def __getitem__(self, role: str) -> Tensor:
        self.noted.add(role)
        return super().__getitem__(role)

    def get(self, role: str, otherwise: Any = None) -> Any:
        return self[role] if role in self else otherwise  # noqa: SIM401  # `[]` notes it

    def values(self) -> Any:
        return [self[role] for role in self]

    def items(self) -> Any:
        return [(role, self[role]) for role in self]
