"""A frozen module becomes a host, in place: its class changes to a cached subclass of itself and nothing else does.

    q_proj                Linear               keys: weight, bias
    q_proj (attached)     Linear(Host, Linear) keys: weight, bias, adapters.fr.lora_A.weight, ...

Base keys, `isinstance`, the class's name and the signature of `forward` stay as they were.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial, singledispatch, wraps
from types import MethodType
from typing import Any, ClassVar

from torch import Tensor, nn

from featherweight.core import fused
from featherweight.core.adapter import Adapter
from featherweight.core.derived import derive
from featherweight.core.errors import InputError, Problem
from featherweight.core.switch import Switch


class Adapters(nn.ModuleDict):
    """name -> adapter on one host. Any name without a dot will do, also one that a ModuleDict has as an attribute."""

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module


class Host:
    """Mixin of every host class; `frozen_class` is what the module was, and what it becomes again."""

    frozen_class: ClassVar[type[nn.Module]]
    adapters: Adapters
    switch: Switch


class Base:
    """What an adapter sees of its host: callable as the host with the adapters `below`, and a mapping of its tensors.

    `ground`, where given, is called in place of the host itself.
    """

    __slots__ = ("below", "ground", "host")

    def __init__(self, host: Any, below: tuple[Adapter, ...] = (), ground: Callable[..., Any] | None = None):
        self.host, self.below, self.ground = host, below, ground

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.below:
            if self.ground is not None:
                return self.ground(*args, **kwargs)
            return self.host.frozen_class.forward(self.host, *args, **kwargs)
        rest, top = self.below[:-1], self.below[-1]
        if not rest and self.ground is None:
            kernel = fused.kernels.get((type(top), self.host.frozen_class))
            if kernel is not None:
                return kernel(top, self.host, *args, **kwargs)
        return top(Base(self.host, rest, self.ground), *args, **kwargs)

    def __getitem__(self, name: str) -> Tensor:
        merged = self.merged
        return merged[name] if name in merged else read(self.host, name)

    @property
    def merged(self) -> dict[str, Tensor]:
        """The tensors that the adapters below rewrite, folded."""
        if not self.below:
            return {}
        base = Base(self.host, self.below[:-1])
        return base.merged | self.below[-1].merge(base)

    def using(self, weights: dict[str, Tensor]) -> Callable[..., Any]:
        """The host's own forward over other tensors."""
        return partial(self.host.frozen_class.forward, view(self.host, self.merged | weights))


def view(host: Any, weights: dict[str, Tensor]) -> nn.Module:
    """A shallow copy of the host, of its frozen class, that holds `weights` in place of its own tensors.

    A real instance, so that `super()` and helper methods inside the class's forward see the other tensors too.
    """
    copy: nn.Module = object.__new__(host.frozen_class)
    copy.__dict__.update(host.__dict__)
    copy.__dict__["_parameters"] = host._parameters | weights
    return copy


@cache
def host_class(cls: Any) -> Any:
    """The host class of a module class: one for each, made once."""

    @wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        held = self.adapters._modules
        stack = tuple(held[n] for n in self.switch.active if n in held)
        return Base(self, stack)(*args, **kwargs) if stack else cls.forward(self, *args, **kwargs)

    return derive(cls, host_class, Host, forward=forward, frozen_class=cls)


def frozen_class(module: nn.Module) -> Any:
    """The class of a module as it was before any attach."""
    return module.frozen_class if isinstance(module, Host) else type(module)


def reclass(module: nn.Module, cls: Any) -> None:
    """The one way a module's class changes: a host stays a host, and bound forwards kept by others are re-pointed."""
    module.__class__ = host_class(cls) if isinstance(module, Host) else cls
    if "_old_forward" in vars(module):  # accelerate's hooks keep the old bound forward and would call that
        vars(module)["_old_forward"] = MethodType(type(module).forward, module)


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
    module.adapters = Adapters()
    module.__dict__["switch"] = switch
    module.__class__ = host_class(frozen_class(module))
    reclass(module, frozen_class(module))


def leave_host(module: nn.Module) -> None:
    """Give a host its frozen class back."""
    cls = frozen_class(module)
    del module.adapters
    del module.__dict__["switch"]
    module.__class__ = cls
    reclass(module, cls)


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


def base_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """`named_modules` without the adapters: what the model was before any attach, each module once."""
    seen: set[int] = set()
    stack = [(prefix, model)]
    while stack:
        path, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        children = [(n, m) for n, m in module._modules.items() if m is not None and not isinstance(m, Adapters)]
        stack += [(f"{path}.{n}" if path else n, m) for n, m in reversed(children)]


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """`named_parameters` without the adapters', each tensor once."""
    seen: set[int] = set()
    for path, module in base_modules(model):
        for name, p in module._parameters.items():
            if p is not None and id(p) not in seen:
                seen.add(id(p))
                yield f"{path}.{name}" if path else name, p


@singledispatch
def read(host: Any, name: str) -> Tensor:
    """A host's own tensor; number formats and foreign hosts register how theirs are decoded."""
    return getattr(host, name)


@singledispatch
def write(host: Any, name: str, W: Tensor) -> None:
    """Put a merged tensor into a host; number formats and foreign hosts register how theirs are encoded."""
    getattr(host, name).data.copy_(W)
