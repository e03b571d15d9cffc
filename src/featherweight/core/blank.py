"""Modules that are made to be filled at once: their own first values are never drawn."""

from functools import cache
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def blank(cls: type[M], *args: Any, **kwargs: Any) -> M:
    """A module with memory and no values, as `torch.nn.utils.skip_init` makes it, without that one's way through the
    meta device: ten times as fast, which is most of the time that a load takes.
    """
    kind: Any = cls
    made = undrawn(kind)(*args, **kwargs)
    made.__class__ = cls
    return made


@cache
def undrawn(cls: Any) -> Any:
    return type(cls.__name__, (cls,), {"reset_parameters": lambda self: None})
