"""Classes made at run time that look like the class they come from: hosts, fused modules, models that save adapters.

    Linear  ->  Linear(Host, Linear)  ->  ...        name, module and doc stay; only what `members` says is other

An instance pickles as its plain class and the makers that led from there to its own, so that another process finds it
again; `torch.save`, deepcopy and multiprocessing need nothing more.
"""

from collections.abc import Callable
from typing import Any

Maker = Callable[[Any], Any]  # a class -> a class derived from it; a function that pickle finds by name, or a partial


def derive(cls: Any, maker: Maker, *mixins: type, **members: Any) -> Any:
    """A subclass of `cls` with `mixins` in front and `members` in place; `maker(cls)` must make it again."""
    plain, makers = getattr(cls, "made_from", (cls, ()))
    looks = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    made_from = (plain, (*makers, maker))
    return type(cls.__name__, (*mixins, cls), {**looks, "made_from": made_from, "__reduce_ex__": reduce, **members})


def reduce(instance: Any, protocol: Any) -> Any:
    return rebuild, type(instance).made_from, vars(instance)


def rebuild(plain: Any, makers: tuple[Maker, ...]) -> Any:
    """An empty instance of the class that `makers` lead to from `plain`."""
    cls = plain
    for maker in makers:
        cls = maker(cls)
    return object.__new__(cls)
