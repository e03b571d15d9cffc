"""A frozen module becomes a host, in place: its class changes to a cached subclass of itself and nothing else does.

    q_proj                Linear               keys: weight, bias
    q_proj (attached)     Linear(Host, Linear) keys: weight, bias, adapters.fr.lora_A.weight, ...

Base keys, `isinstance`, the class's name and the signature of `forward` stay as they were.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from types import MethodType
from typing import Any, ClassVar

from torch import Tensor, nn

from featherweight.core.base import Base
from featherweight.core.blank import begin
from featherweight.core.derived import derive
from featherweight.core.errors import InputError, Problem
from featherweight.core.rows import routed
from featherweight.core.strength import Softened
from featherweight.core.switch import Switch


class Adapters(nn.ModuleDict):
    """name -> adapter on one host. Any name without a dot will do, also one that a ModuleDict has as an attribute."""

    def __init__(self) -> None:
        begin(self)

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module


class Host:
    """Mixin of every host class; `frozen_class` is what the module was, and what it becomes again."""

    frozen_class: ClassVar[type[nn.Module]]
    adapters: Adapters
    switch: Switch


@cache
def host_class(cls: Any) -> Any:
    """The host class of a module class: one for each, made once."""

    @wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        switch = self.switch
        if switch.rows is not None:
            return routed(self, stack_of, args, kwargs)
        stack = stack_of(self, switch.active)
        if not stack:
            return cls.forward(self, *args, **kwargs)
        for adapter in stack:
            if adapter.joint is not None:
                return adapter.joint(self, [(None, stack)], args, kwargs)
        return Base(self, stack)(*args, **kwargs)

    return derive(cls, host_class, Host, forward=forward, frozen_class=cls)


def stack_of(host: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The adapters that a host has of these names, bottom first, each at its strength."""
    held, strength = host.adapters._modules, host.switch.strength
    if not strength:
        return tuple(held[n] for n in names if n in held)
    return tuple(Softened(held[n], strength[n]) if n in strength else held[n] for n in names if n in held)


def frozen(module: Any) -> Callable[..., Any]:
    """A module as it was before any attach, for a method's own use of it: no adapters, no rows."""
    return Base(module) if isinstance(module, Host) else module


def frozen_class(module: nn.Module) -> Any:
    """The class of a module as it was before any attach."""
    return module.frozen_class if isinstance(module, Host) else type(module)


def reclass(module: nn.Module, cls: Any) -> None:
    """The one way a module's class changes: a host stays a host, and bound forwards kept by others are re-pointed."""
    put_class(module, host_class(cls) if isinstance(module, Host) else cls)


def put_class(module: Any, cls: Any) -> None:
    object.__setattr__(module, "__class__", cls)  # a module's own looks for parameters first
    if "_old_forward" in vars(module):  # accelerate's hooks keep the old bound forward and would call that
        vars(module)["_old_forward"] = MethodType(type(module).forward, module)


def lent(host: Any, weights: Mapping[str, Tensor], plain: Any) -> Callable[[], None]:
    """`lend` of a module that keeps codes: over another weight it runs as the class `plain`, until put back."""
    before, cls = dict(host._parameters), frozen_class(host)
    host._parameters.update(weights)
    if "weight" in weights:
        reclass(host, plain)

    def back() -> None:
        host._parameters.clear()
        host._parameters.update(before)
        reclass(host, cls)

    return back


def become_host(module: nn.Module, switch: Switch, path: str) -> None:
    """Make a module a host in place; a host already is left as it is."""
    if isinstance(module, Host):
        return
    if "forward" in vars(module) and "_old_forward" not in vars(module):
        raise InputError(
            Problem(
                "its forward was replaced on the instance (accelerate.prepare does that), so an adapter "
                "would be ignored",
                path,
                fix="attach first, then prepare",
            )
        )
    module._modules["adapters"] = Adapters()
    module.__dict__["switch"] = switch
    put_class(module, host_class(frozen_class(module)))


def leave_host(module: nn.Module) -> None:
    """Give a host its frozen class back."""
    cls = frozen_class(module)
    del module.adapters
    del module.__dict__["switch"]
    put_class(module, cls)


def refuse_sharded(model: nn.Module, verb: str, fix: str) -> None:
    """fully_shard keeps its own books of parameters: adapters come before it, and stay until it is gone."""
    sharded = next(
        (p for p, m in base_modules(model) if any(c.__name__ == "FSDPModule" for c in type(m).__mro__)), None
    )
    if sharded is not None:
        raise InputError(Problem(f"{verb} after fully_shard", sharded or "the model", fix=fix))


def hosts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, host) of every host in the model."""
    return ((path, m) for path, m in base_modules(model) if isinstance(m, Host))


# id of a module -> what a walk through it found; those modules are held, so no other one comes to have their id
_walks: ContextVar[dict[int, list[tuple[str, nn.Module]]] | None] = ContextVar("walks", default=None)


@contextmanager
def steady() -> Iterator[None]:
    """A promise that no module of the base comes or goes: each walk is done once. Hosts and adapters may come and go,
    since a host is the module that it was.
    """
    token = _walks.set(_walks.get() or {})
    try:
        yield
    finally:
        _walks.reset(token)


def base_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """`named_modules` without the adapters: what the model was before any attach, each module once."""
    walks = _walks.get()
    if walks is None or prefix:
        return walk(model, prefix)
    if id(model) not in walks:
        walks[id(model)] = list(walk(model, prefix))
    return iter(walks[id(model)])


def walk(model: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    stack = [(prefix, model)]
    while stack:
        path, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        if module._modules:
            stem = f"{path}." if path else ""
            below = reversed(module._modules.items())
            stack += [(stem + n, m) for n, m in below if m is not None and not isinstance(m, Adapters)]


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """`named_parameters` without the adapters', each tensor once."""
    seen: set[int] = set()
    for path, module in base_modules(model):
        for name, p in module._parameters.items():
            if p is not None and id(p) not in seen:
                seen.add(id(p))
                yield f"{path}.{name}" if path else name, p
