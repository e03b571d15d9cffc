"""What an adapter sees of its host: callable as the host with the adapters below, and a mapping of its tensors."""

from collections.abc import Callable, Mapping
from functools import partial, singledispatch
from typing import Any

from torch import Tensor, nn

from featherweight.core import fused


class Base:
    """What an adapter sees of its host: callable as the host with the adapters `below`, and a mapping of its tensors.

    `ground`, where given, is called in place of the host itself.
    """

    __slots__ = ("below", "ground", "host")

    def __init__(self, host: Any, below: tuple[Any, ...] = (), ground: Callable[..., Any] | None = None):
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
    def rows(self) -> Tensor | None:
        """Which rows of the batch this call is about, None for all: what one host keeps for another goes by them."""
        return getattr(self.ground, "rows", None)

    @property
    def merged(self) -> dict[str, Tensor]:
        """The tensors that the adapters below rewrite, folded; those without a weight law rewrite none."""
        if not self.below:
            return {}
        base = Base(self.host, self.below[:-1])
        return base.merged | (self.below[-1].merge(base) if self.below[-1].folds else {})

    def using(self, weights: dict[str, Tensor]) -> Callable[..., Any]:
        """The host's own forward over other tensors, inside those adapters below that do not fold into any."""
        over = view(self.host, self.merged | weights)
        ground = partial(type(over).forward, over)
        if self.rows is not None:  # the compiler knows no attributes of a partial
            ground.rows = self.rows  # type: ignore[attr-defined]
        around = tuple(a for a in self.below if not a.folds)
        return Base(self.host, around, ground) if around else ground


class Once(Base):
    """A base whose answer to these very arguments is known already: the host is not called again for it."""

    __slots__ = ("answer", "args")

    def __init__(self, base: Base, args: tuple[Any, ...], answer: Any):
        super().__init__(base.host, base.below, base.ground)
        self.args, self.answer = args, answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == len(self.args) and all(a is b for a, b in zip(args, self.args, strict=True)):
            return self.answer
        return super().__call__(*args, **kwargs)


def view(host: Any, weights: dict[str, Tensor]) -> nn.Module:
    """A shallow copy of the host, of its frozen class, that holds `weights` in place of its own tensors (of its plain
    class, where those stand in for codes).

    A real instance, so that `super()` and helper methods inside the class's forward see the other tensors too.
    """
    copy: nn.Module = object.__new__(host.frozen_class)
    copy.__dict__.update(host.__dict__)
    copy.__dict__["_parameters"] = dict(host._parameters)
    lend(copy, weights)
    return copy


@singledispatch
def read(host: Any, name: str) -> Tensor:
    """A host's own tensor; number formats and foreign hosts register how theirs are decoded."""
    return getattr(host, name)


@singledispatch
def lend(host: Any, weights: Mapping[str, Tensor]) -> Callable[[], None]:
    """Put tensors in place of a module's own until the function returned is called; number formats and foreign hosts,
    which keep codes there, register how they run over plain tensors.
    """
    before = {name: host._parameters[name] for name in weights}
    host._parameters.update(weights)
    return lambda: host._parameters.update(before)


@singledispatch
def write(host: Any, name: str, W: Tensor, again: bool = False) -> None:
    """Put a merged tensor into a host; number formats and foreign hosts register how theirs is put. `again`: where it
    was kept as codes it becomes codes again, which loses what rounding loses; otherwise it stays in floating point.
    """
    getattr(host, name).data.copy_(W)
