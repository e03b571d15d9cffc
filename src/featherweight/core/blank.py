"""Modules that are made to be filled at once: their own first values are never drawn."""

from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

M = TypeVar("M", bound=nn.Module)


def blank(cls: type[M], *args: Any, **kwargs: Any) -> M:
    """A module without children or buffers, with memory and no values, as `torch.nn.utils.skip_init` makes it.

    A fraction of that one's way through the meta device: the constructor runs once for each set of arguments, since
    it would be a third of the time that a load takes.
    """
    kind: Any = cls
    made: M = object.__new__(cls)
    parameters = pour(made, kind, args, tuple(kwargs.items()))
    for name, like in parameters:
        vars(made)["_parameters"][name] = None if like is None else nn.Parameter(torch.empty(like[0], **like[1]))
    return made


def begin(module: nn.Module) -> None:
    """`nn.Module.__init__`, in under half its time: a load makes hundreds of modules."""
    pour(module, nn.Module, (), ())


def pour(module: nn.Module, *kind: Any) -> Any:
    """What a constructor leaves on a module, all but the parameters that it makes, which are returned."""
    constants, containers, parameters = mold(*kind)
    own = vars(module)
    own.update(constants)
    for name, empty in containers:
        own[name] = empty()
    return parameters


@cache
def mold(cls: Any, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> Any:
    """What the constructor leaves on a module: constants, empty containers by their type, and parameters as (shape,
    dtype and device) or None.
    """
    made = type(cls.__name__, (cls,), {"reset_parameters": lambda self: None})(*args, **dict(kwargs))
    parameters = [
        (name, None if p is None else (tuple(p.shape), {"dtype": p.dtype, "device": p.device}))
        for name, p in made._parameters.items()
    ]
    made._parameters.clear()
    containers = [(name, type(value)) for name, value in vars(made).items() if isinstance(value, dict | set)]
    filled = [name for name, _ in containers if vars(made)[name]]
    if filled:
        raise TypeError(f"{cls.__name__} has {', '.join(filled)}, which a mold does not keep")
    kept = dict(containers)
    return {name: value for name, value in vars(made).items() if name not in kept}, containers, parameters


def is_bare(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and no values."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)
