"""An adapter: a small trainable module that is middleware around a frozen host.

It has at most two laws. The activation law `forward(base, *args)` runs around the host's own call; the weight law
`merge(W)` says which of the host's tensors it rewrites, and how. One of them is enough: without `forward` the host runs
over the rewritten tensors; without `merge` the adapter works but cannot be folded into weights.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from featherweight.core.blank import begin
from featherweight.core.errors import NotMergeable, Problem, raise_all

if TYPE_CHECKING:
    from featherweight.core.base import Base


class Adapter(nn.Module):
    """Base of every adapter; subclasses define `forward`, `merge`, or both.

    `joint(host, groups, args, kwargs)`, where given (a staticmethod), replaces both: it serves all rows of a host
    together, because what they share (the layout of a batch, the attention function) cannot be done one group after
    the other. `groups` lists (row numbers or None for all, stack of adapters).
    """

    joint: ClassVar[Callable[..., Any] | None] = None
    elastic: ClassVar[tuple[str, ...]] = ()  # last names of 1-d tensors whose length a file decides, not the method

    def __init__(self) -> None:
        begin(self)

    def forward(self, base: "Base", *args: Any, **kwargs: Any) -> Any:
        """The host's output with this adapter on. `base(...)` is the host with the adapters below already applied."""
        return base.using(self.merge(base))(*args, **kwargs)

    def merge(self, W: "Mapping[str, Tensor] | Base") -> dict[str, Tensor]:
        """The tensors this adapter rewrites. `W["weight"]` is the host's tensor after the adapters below."""
        raise NotMergeable(
            f"{type(self).__name__} has no weight law: it cannot be merged; keep it attached and save it"
        )

    @property
    def folds(self) -> bool:
        """Whether it has a weight law."""
        return type(self).merge is not Adapter.merge

    @property
    def rewrites(self) -> bool:
        """Whether it acts through the host's tensors alone: its forward is the host's over what `merge` gives."""
        return type(self).forward is Adapter.forward

    def rounding(self, W: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        """Called when the host's matrix W (out, in) is about to be kept as codes, `rounded` being what a matrix decodes
        to; returns what to keep in W's place. An adapter may start from what is lost here (LoftQ).
        """
        return W

    def learn(self, on: bool) -> None:
        """Turn training of the parameters on or off; methods with a frozen half override this."""
        for p in own_parameters(self):
            p.requires_grad = on

    def misfits(self, prefix: str, tensors: Mapping[str, Tensor]) -> Iterable[Problem]:
        """What is wrong with tensors of the right names and shapes that are about to be loaded, keys after `prefix`."""
        return ()

    def added(self) -> int:
        """How many parameters a model grows by with this adapter on (a replacement adds none)."""
        return sum(p.numel() for p in self.parameters())


def parts_of(module: nn.Module) -> Iterator[nn.Module]:
    """A module and those in it, as `modules()` yields them, in a fifth of its time; what is held twice comes twice."""
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from parts_of(child)


def own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    return (p for part in parts_of(module) for p in part._parameters.values() if p is not None)


class Replace(Adapter):
    """Trains the host's own tensors as copies: switched off, the base is back bit for bit.

    `held` maps a tensor's name to its trainable copy, in fp32 where the base is in 16 bits; two hosts that share a tied
    tensor are given the same copy.
    """

    def __init__(self, held: Mapping[str, nn.Parameter]):
        super().__init__()
        for name, copy in held.items():
            self.register_parameter(name, copy)

    def merge(self, W: "Mapping[str, Tensor] | Base") -> dict[str, Tensor]:
        held = dict(self.named_parameters(recurse=False))
        raise_all(resized(name, W[name], copy) for name, copy in held.items() if copy.shape != W[name].shape)
        return {name: copy.to(W[name].dtype) for name, copy in held.items()}

    def added(self) -> int:
        return 0


def resized(name: str, now: Tensor, then: Tensor) -> Problem:
    """The problem of a base tensor whose shape changed under its adapter."""
    return Problem(
        "the base tensor changed its shape after the attach",
        name,
        f"{tuple(then.shape)}",
        f"{tuple(now.shape)}",
        "resize first, then attach",
    )
