"""Which adapters are on, and which of them train: one switch for a whole model.

Each adapter's name carries a mark, to be trained or not; its parameters require grad exactly while it is active and
marked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from featherweight.core.errors import InputError, Problem, did_you_mean

if TYPE_CHECKING:
    from featherweight.core.method import Method


@dataclass(frozen=True)
class Attached:
    """What was attached under a name: the method, whether a task head trains with it, and the mark."""

    method: "Method"
    head: bool = False
    marked: bool = True


@dataclass(eq=False)
class Switch:
    """Shared by all hosts of a model. `active` is the stack, bottom first."""

    attached: dict[str, Attached] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    frozen: list[nn.Parameter] = field(default_factory=list)  # the base, once each part of it was frozen
    thawed: list[nn.Parameter] = field(default_factory=list)  # those of it that required grad before

    def trains(self, name: str) -> bool:
        return name in self.active and self.attached[name].marked


class Switched:
    """What `switch` returns: nothing to do with it, or a context that puts back what was on before."""

    def __init__(self, model: nn.Module, active: tuple[str, ...], attached: dict[str, Attached]):
        self.model, self.active, self.attached = model, active, attached

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None:
        state = switch_of(self.model)
        state.attached |= {n: a for n, a in self.attached.items() if n in state.attached}
        state.active = tuple(n for n in self.active if n in state.attached)
        refresh(self.model)


def switch_of(model: nn.Module) -> Switch:
    """The model's switch, wherever in it a host was made first; a fresh one for a model with nothing attached."""
    return next(iter(switches(model)), Switch())


def switches(model: nn.Module) -> list[Switch]:
    """Every switch in the model: more than one where submodules were attached apart."""
    found = [vars(m)["switch"] for m in model.modules() if isinstance(vars(m).get("switch"), Switch)]
    return list({id(s): s for s in found}.values())


def joined(model: nn.Module) -> Switch:
    """The model's one switch; those of submodules that were attached apart are joined into it."""
    one, *others = switches(model) or [Switch()]
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


def switch(model: nn.Module, names: str | Sequence[str] | None, *, train: bool | None = None) -> Switched:
    """Turn adapters on: a name, several (a stack, bottom first), or None for the base alone.

    `train` sets the mark of the named adapters: True to train them, False to only use them, None to leave it.
    Also a context: `with fw.switch(model, "fr"): ...` puts back what was on. Raises InputError for an unknown name.
    """
    state = switch_of(model)
    wanted = (names,) if isinstance(names, str) else tuple(names or ())
    unknown = [n for n in wanted if n not in state.attached]
    if unknown:
        raise InputError(
            *(
                Problem(
                    "no adapter of this name",
                    got=repr(n),
                    fix=did_you_mean(n, state.attached)
                    if state.attached
                    else "nothing is attached: attach or load one first",
                )
                for n in unknown
            )
        )
    if len(set(wanted)) < len(wanted):
        raise InputError(Problem("an adapter stands twice in a stack", got=repr(wanted)))
    before = Switched(model, state.active, dict(state.attached))
    for name in wanted:
        if train is not None:
            old = state.attached[name]
            state.attached[name] = Attached(old.method, old.head, train)
    state.active = wanted
    refresh(model)
    return before


def refresh(model: nn.Module) -> None:
    """Make every adapter's parameters require grad exactly while it is active and marked."""
    from featherweight.core.host import hosts

    state = switch_of(model)
    for _, host in hosts(model):
        for name, adapter in host.adapters.items():
            adapter.learn(state.trains(name))
