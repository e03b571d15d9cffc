"""Rows: many adapters in one batch, every host called once.

    rows      a  b  a  -          fw.switch(model, rows=["a", "b", "a", None])
    groups    a: 0 2   b: 1   none: 3

Group i's `base` starts group i + 1; the innermost `base` calls the host once, on all rows in their own order, and each
group gets its rows of the answer. So a method never learns of other rows. A weight law does not call its base: its
group costs a host call of its own, and so does a second call of `base` (Pfeiffer's).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.core import fused
from featherweight.core.base import Base
from featherweight.core.errors import InputError, Problem

Group = tuple[Tensor, tuple[Any, ...]]  # row numbers, the stack of adapters, bottom first


@dataclass(eq=False)
class Plan:
    """How the rows of one switching go through one host; `turn` says of which switching. Kept on the host's adapters.

    `order` puts the groups' rows, one group after the other, back into the batch's order; `memo` is the bank's.
    """

    turn: object
    batch: int
    device: torch.device
    groups: list[Group]
    order: Tensor
    memo: Any = None


def routed(host: Any, stack_of: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The host's output where each row of the batch has a stack of its own."""
    x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), None)
    if x is None:
        raise InputError(Problem("no tensor among the inputs to tell the rows of", type(host).__name__))
    rows = len(host.switch.rows)
    if len(x) == 1 and rows > 1:  # position embeddings are looked up once for the whole batch
        args, kwargs = spread((args, kwargs), rows)
        x = x.expand(rows, *x.shape[1:])
    plan = planned(host, stack_of, len(x), x.device)
    stacks = [stack for _, stack in plan.groups]
    joint = next((a.joint for stack in stacks for a in stack if a.joint is not None), None)
    if joint is not None:
        return joint(host, plan.groups, args, kwargs)
    if len(stacks) == 1:
        return Base(host, stacks[0])(*args, **kwargs)
    bank = banked(host, stacks)
    return bank(host, plan, *args, **kwargs) if bank is not None else nest(host, plan, args, kwargs)


def banked(host: Any, stacks: Sequence[tuple[Any, ...]]) -> Any:
    """The bank that serves all groups in one pass: one adapter type, at most one adapter for each group."""
    kinds = {type(a) for stack in stacks for a in stack}
    if len(kinds) != 1 or any(len(stack) > 1 for stack in stacks):
        return None
    return fused.banks.get((kinds.pop(), host.frozen_class))


def planned(host: Any, stack_of: Callable[..., Any], batch: int, device: torch.device) -> Plan:
    """The host's plan for the rows that are on; made once for each switching and size of batch."""
    kept = vars(host.adapters).get("plan")
    turn = host.switch.turn
    if kept is not None and kept.turn is turn and kept.batch == batch and kept.device == device:
        return kept
    rows = host.switch.rows
    each, rest = divmod(batch, len(rows))
    if rest:
        raise InputError(
            Problem(
                "the rows do not divide the batch",
                type(host).__name__,
                f"a multiple of {len(rows)} (beams and tokens of one row lie together)",
                f"{batch}",
                "give fw.switch one entry for each row",
            )
        )
    members: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, names in enumerate(rows):
        members[stack_of(host, names)] += range(i * each, (i + 1) * each)
    with torch.inference_mode(False):  # what is kept must serve a later training step too
        groups: list[Group] = [(torch.tensor(ix, device=device), stack) for stack, ix in members.items()]
        order = torch.tensor([i for ix in members.values() for i in ix], device=device).argsort()
    plan = Plan(turn, batch, device, groups, order)
    vars(host.adapters)["plan"] = plan
    return plan


def nest(host: Any, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the groups around one call of the host."""
    run = Nest(host, plan, (args, kwargs))
    run.enter(0)
    sizes = [len(index) for index, _ in plan.groups]
    return together([run.outs[i] for i in range(len(sizes))], plan.order, sizes)


class Nest:
    """One call of a host by all groups: what each asked of it, got from it and made of it."""

    def __init__(self, host: Any, plan: Plan, given: Any):
        self.host, self.plan, self.given = host, plan, given
        self.asked: dict[int, Any] = {}
        self.got: dict[int, Any] = {}
        self.outs: dict[int, Any] = {}

    def enter(self, i: int) -> None:
        """Start group i; behind the last one the host is called."""
        if i == len(self.plan.groups):
            self.ground()
            return
        index, stack = self.plan.groups[i]
        asking = Asking(self, i, index)
        args, kwargs = cut(self.given, index, self.plan.batch)
        self.outs[i] = Base(self.host, stack, asking)(*args, **kwargs)
        if asking.waits:  # a weight law: it ran the host itself
            self.enter(i + 1)

    def ground(self) -> None:
        """Call the host on the rows of the groups that asked; all of them are put back into the batch's order."""
        if not self.asked:
            return
        groups, here = self.plan.groups, list(self.asked)
        sizes = [len(groups[i][0]) for i in here]
        complete = len(here) == len(groups)
        order = self.plan.order if complete else None
        args, kwargs = joined([self.asked[i] for i in here], order, self.given, self.plan.batch)
        y = Base(self.host, ())(*args, **kwargs)
        for i, at in zip(here, torch.arange(sum(sizes), device=self.plan.device).split(sizes), strict=True):
            self.got[i] = cut(y, groups[i][0] if complete else at, sum(sizes))


class Asking:
    """A group's `base`: its first call waits for the other groups, a later one is the group's own."""

    def __init__(self, nest: Nest, i: int, rows: Tensor):
        self.nest, self.i, self.rows, self.waits = nest, i, rows, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.waits:
            return Base(self.nest.host, ())(*args, **kwargs)
        self.waits = False
        self.nest.asked[self.i] = (args, kwargs)
        self.nest.enter(self.i + 1)
        return self.nest.got[self.i]


def cut(value: Any, index: Tensor, batch: int) -> Any:
    """The rows `index` of every tensor that has one entry for each of the batch, in tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        return value.index_select(0, index) if value.dim() and len(value) == batch else value
    if type(value) is dict:
        return {k: cut(v, index, batch) for k, v in value.items()}
    return type(value)(cut(v, index, batch) for v in value) if type(value) in (tuple, list) else value


def spread(value: Any, batch: int) -> Any:
    """Tensors of a batch of one, expanded to `batch` rows."""
    if isinstance(value, Tensor):
        return value.expand(batch, *value.shape[1:]) if value.dim() and len(value) == 1 else value
    if type(value) is dict:
        return {k: spread(v, batch) for k, v in value.items()}
    return type(value)(spread(v, batch) for v in value) if type(value) in (tuple, list) else value


def joined(parts: list[Any], order: Tensor | None, given: Any, batch: int) -> Any:
    """What the groups asked of the host, as one call: row-wise tensors below one another, all else as it was given."""
    if isinstance(given, Tensor):
        if not given.dim() or len(given) != batch:
            return parts[0]
        whole = torch.cat(parts)
        return whole if order is None else whole.index_select(0, order)
    if type(given) is dict:
        return {k: joined([p[k] for p in parts], order, v, batch) for k, v in given.items()}
    if type(given) in (tuple, list):
        return type(given)(joined([p[j] for p in parts], order, v, batch) for j, v in enumerate(given))
    return given


def together(outs: list[Any], order: Tensor, sizes: list[int]) -> Any:
    """The groups' outputs in the batch's order. Raises InputError where they differ in width (heads of other tasks)."""
    first = outs[0]
    if isinstance(first, Tensor):
        if not all(len(y) == n for y, n in zip(outs, sizes, strict=True)):
            return first  # not row-wise
        shapes = {tuple(y.shape[1:]) for y in outs}
        if len(shapes) > 1:
            raise InputError(
                Problem(
                    "rows whose outputs differ in shape cannot share a batch",
                    "rows",
                    got=", ".join(map(str, sorted(shapes))),
                    fix="batch adapters with heads of one size together",
                )
            )
        return torch.cat(outs).index_select(0, order)
    if type(first) in (tuple, list):
        return type(first)(together(list(column), order, sizes) for column in zip(*outs, strict=True))
    return first
