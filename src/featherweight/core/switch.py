"""Which adapters are on, and which of them train: one switch for a whole model.

Each adapter's name carries a mark, to be trained or not; its parameters require grad exactly while it is active and
marked.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all

if TYPE_CHECKING:
    from featherweight.core.method import Method

Stack = tuple[str, ...]


@dataclass(frozen=True)
class Attached:
    """What was attached under a name: the method, whether a task head trains with it, and the mark."""

    method: "Method"
    head: bool = False
    marked: bool = True


@dataclass(eq=False)
class Switch:
    """Shared by all hosts of a model. `active` is the stack, bottom first; `rows`, where given, one stack for each row.

    `turn` is another object after every change, so that what hosts remember of a switching is known to be old.
    """

    attached: dict[str, Attached] = field(default_factory=dict)
    active: Stack = ()
    rows: tuple[Stack, ...] | None = None
    strength: dict[str, float] = field(default_factory=dict)  # of those that are not at 1
    frozen: list[nn.Parameter] = field(default_factory=list)  # the base, once each part of it was frozen
    thawed: list[nn.Parameter] = field(default_factory=list)  # those of it that required grad before
    turn: list[None] = field(default_factory=list)

    @property
    def on(self) -> Stack:
        """Every adapter that is on, for the whole batch or for some of its rows."""
        return tuple(dict.fromkeys((*self.active, *(n for stack in self.rows or () for n in stack))))

    def trains(self, name: str) -> bool:
        return name in self.on and self.attached[name].marked

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Let go of tensors of the base that are about to leave the model: it keeps no float beside its codes."""
        gone = {id(t) for t in tensors}
        self.frozen = [p for p in self.frozen if id(p) not in gone]
        self.thawed = [p for p in self.thawed if id(p) not in gone]

    def set(self, active: Stack, rows: tuple[Stack, ...] | None, strength: Mapping[str, float]) -> None:
        self.active, self.rows, self.strength, self.turn = active, rows, dict(strength), []


class Switched:
    """What `switch` returns: nothing to do with it, or a context that puts back what was on before."""

    def __init__(self, model: nn.Module, state: Switch):
        self.model, self.active, self.rows = model, state.active, state.rows
        self.strength, self.marks = dict(state.strength), {n: a.marked for n, a in state.attached.items()}

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None:
        state = switch_of(self.model)
        there = state.attached
        there |= {n: replace(there[n], marked=mark) for n, mark in self.marks.items() if n in there}
        rows = None if self.rows is None else tuple(tuple(n for n in s if n in there) for s in self.rows)
        state.set(
            tuple(n for n in self.active if n in there), rows, {n: c for n, c in self.strength.items() if n in there}
        )
        for name, own in held(self.model, state).items():
            own.learn(state.trains(name))


def switch_of(model: nn.Module) -> Switch:
    """The model's switch, wherever in it a host was made first; a fresh one for a model with nothing attached."""
    return next(switches(model), None) or Switch()


def switches(model: nn.Module) -> Iterator[Switch]:
    """Every switch in the model: more than one where submodules were attached apart."""
    from featherweight.core.host import base_modules

    seen: set[int] = set()
    for _, module in base_modules(model):
        found = module.__dict__.get("switch")
        if isinstance(found, Switch) and id(found) not in seen:
            seen.add(id(found))
            yield found


def joined(model: nn.Module) -> Switch:
    """The model's one switch; those of submodules that were attached apart are joined into it."""
    one, *others = list(switches(model)) or [Switch()]
    for other in others:
        both = sorted(set(one.attached) & set(other.attached))
        if both:
            raise InputError(
                *(
                    Problem(
                        "two parts of the model hold different adapters of this name",
                        got=repr(n),
                        fix="detach one of them first",
                    )
                    for n in both
                )
            )
        one.attached |= other.attached
        one.active += other.active
        one.frozen += other.frozen
        one.thawed += other.thawed
    for module in model.modules() if others else ():
        if "switch" in vars(module):
            vars(module)["switch"] = one
    return one


def switch(
    model: nn.Module,
    names: str | Sequence[str] | Mapping[str, float] | None = None,
    *,
    rows: Sequence[str | Sequence[str] | None] | None = None,
    train: bool | None = None,
) -> Switched:
    """Turn adapters on: a name, several (a stack, bottom first), a mapping of names to strengths, or None for the base.

    `rows` gives every row of the batches to come a name, a stack or None of its own; where a batch has several times
    as many rows (beams), neighbors share an entry. `train` sets the mark of the adapters: True to train them, False to
    only use them, None to leave it. Also a context: `with fw.switch(model, "fr"): ...` puts back what was on.
    Raises InputError for an unknown name, and for a method that cannot differ from row to row.
    """
    state = switch_of(model)
    wanted = stack(names)
    each = None if rows is None else tuple(stack(row) for row in rows)
    strength = {n: float(c) for n, c in names.items() if c != 1} if isinstance(names, Mapping) else {}
    every = tuple(dict.fromkeys((*wanted, *(n for s in each or () for n in s))))
    raise_all([*unknown(state, every), *twice((wanted, *(each or ()))), *alone(state, wanted, each)])
    raise_all(rigid(model, state, strength))
    before = Switched(model, state)
    for name in every:
        if train is not None:
            state.attached[name] = replace(state.attached[name], marked=train)
    touched = {*state.on, *every}
    state.set(wanted, each, strength)
    for name in touched:
        held(model, state)[name].learn(state.trains(name))
    return before


def stack(names: str | Iterable[str] | None) -> Stack:
    return (names,) if isinstance(names, str) else tuple(names or ())


def unknown(state: Switch, names: Stack) -> list[Problem]:
    nothing = "nothing is attached: attach or load one first"
    return [
        Problem(
            "no adapter of this name", got=repr(n), fix=did_you_mean(n, state.attached) if state.attached else nothing
        )
        for n in names
        if n not in state.attached
    ]


def twice(stacks: Iterable[Stack]) -> list[Problem]:
    return [Problem("an adapter stands twice in a stack", got=repr(s)) for s in stacks if len(set(s)) < len(s)]


def alone(state: Switch, wanted: Stack, each: tuple[Stack, ...] | None) -> list[Problem]:
    """What rows do not allow: a stack for all beside them, no rows at all, methods that rewrite the whole model."""
    if each is None:
        return []
    found = [Problem("names for the whole batch and rows", got=repr(wanted), fix="give rows alone")] if wanted else []
    found += [] if each else [Problem("no rows", "rows", fix="give one entry for each row of the batch")]
    mixed = dict.fromkeys(n for s in each for n in s if n in state.attached)
    return found + [
        Problem(
            "cannot differ from row to row", f"rows: {n}", got=repr(state.attached[n].method), fix="switch it on alone"
        )
        for n in mixed
        if not state.attached[n].method.per_row
    ]


def rigid(model: nn.Module, state: Switch, strength: Mapping[str, float]) -> list[Problem]:
    """Strengths that are none; adapters that are there or not: virtual tokens have no half."""
    wrong = [
        Problem("not a strength", n, "a finite number", repr(c))
        for n, c in strength.items()
        if not abs(c) < float("inf")
    ]
    return wrong + [
        Problem("has no strength", n, got=repr(state.attached[n].method), fix="switch it on or off")
        for n in strength
        if any(a.joint is not None for a in held(model, state)[n].adapters)
    ]


@dataclass(eq=False)
class Held:
    """The adapters of one name, and those of their parameters that train when it does."""

    adapters: list[Any] = field(default_factory=list)
    trained: list[nn.Parameter] = field(default_factory=list)

    def learn(self, on: bool) -> None:
        for p in self.trained:
            p.requires_grad = on


# switch -> what it holds by name; beside the switch, so that copying a part of a model does not copy all of it
_held: WeakKeyDictionary[Switch, dict[str, Held]] = WeakKeyDictionary()


def held(model: nn.Module, state: Switch) -> dict[str, Held]:
    """What is held by name, found once for every attach and detach."""
    from featherweight.core.adapter import own_parameters
    from featherweight.core.host import hosts

    if state not in _held:
        found = _held[state] = {}
        for _, host in hosts(model):
            for name, adapter in host.adapters.items():
                found.setdefault(name, Held()).adapters.append(adapter)
        for name, own in found.items():
            for adapter in own.adapters:
                adapter.learn(True)
            every = {id(p): p for adapter in own.adapters for p in own_parameters(adapter)}
            own.trained += [p for p in every.values() if p.requires_grad]
            own.learn(state.trains(name))
    return _held[state]


def refresh(model: nn.Module) -> None:
    """Make every adapter's parameters require grad exactly while it is on and marked; hosts may have changed."""
    state = switch_of(model)
    state.turn = []
    _held.pop(state, None)
    held(model, state)
