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
    thawed: list[nn.Parameter] = field(default_factory=list)  # base parameters that required grad before the freeze

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
    for module in model.modules():
        if "switch" in vars(module) and isinstance(vars(module)["switch"], Switch):
            return vars(module)["switch"]
    return Switch()


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
