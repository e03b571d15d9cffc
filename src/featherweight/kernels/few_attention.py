"""An attention module's own forward, with two names of its file answered natively where one query stands alone.

    query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
    attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_…)

Both take longer for a token than reading its weights does: a dozen operations on a few hundred numbers, and a kernel
made for many queries. A module whose forward holds the second line is lent that forward over other globals; the file,
the registry and the config stay as they are. Angles are served where the file's function gives the same bits.
"""

from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.quant.ops import FEW, direct, native, unwatched

CHANGES = ("softcap", "position_bias", "cache")  # what would make another function of "sdpa"


def lent(module: nn.Module, cls: type[nn.Module]) -> Any:
    """The forward to lend to a module of this class, None where it is no such module."""
    own = cls.forward
    if not isinstance(own, FunctionType) or "ALL_ATTENTION_FUNCTIONS" not in own.__code__.co_names:
        return None
    file = own.__globals__
    answered: dict[str, Any] = {"ALL_ATTENTION_FUNCTIONS": Registry(file["ALL_ATTENTION_FUNCTIONS"])}
    turn = file.get("apply_rotary_pos_emb")
    if turn is not None and turns(turn):
        answered["apply_rotary_pos_emb"] = partial(rotated, turn)
    forward = FunctionType(own.__code__, file | answered, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    return partial(forward, module)


@cache
def turns(function: Any) -> bool:
    """Whether a file's function gives the bits of `rotate`."""
    q, k = torch.linspace(-2, 2, 48).view(1, 3, 1, 16), torch.linspace(1, -3, 32).view(1, 2, 1, 16)
    angles = torch.linspace(0.1, 3, 8).repeat(2).view(1, 1, 16)
    for dtype in (torch.float32, torch.bfloat16):
        given = [t.to(dtype) for t in (q, k, angles.cos(), angles.sin())]
        found = native["rotate"](*given) if "rotate" in native else NotImplemented
        try:
            if found is NotImplemented or not all(map(torch.equal, found, function(*given))):
                return False
        except (TypeError, ValueError, RuntimeError):  # a function of other arguments
            return False
    return True


def alone(q: Tensor) -> bool:
    """One query for each of few rows, q (b, h, 1, d)."""
    return unwatched(q) and q.shape[-2] == 1 and len(q) <= FEW


def rotated(own: Any, q: Tensor, k: Tensor, *args: Any, **options: Any) -> Any:
    """The file's function."""
    if options or len(args) != 2 or not alone(q):
        return own(q, k, *args, **options)
    return direct("rotate", own, (q, k, *args))


class Registry:
    """The registry of attention functions, in which "sdpa" answers one query natively."""

    def __init__(self, own: Any):
        self.own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def __getitem__(self, name: str) -> Any:
        return self.get_interface(name, None)

    def get_interface(self, name: str, default: Any) -> Any:
        function = self.own.get_interface(name, default)
        return partial(attended, function) if name == "sdpa" else function


def attended(
    own: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, **options: Any,
) -> Any:  # fmt: skip
    """transformers' function of "sdpa"."""

    def plain(*_: Any) -> Any:
        return own(module, q, k, v, mask, dropout=dropout, scaling=scaling, **options)

    if dropout or not alone(q) or any(options.get(name) is not None for name in CHANGES):
        return plain()
    y = direct("attend", plain, (q, k, v, mask, q.shape[-1] ** -0.5 if scaling is None else scaling))
    return y if isinstance(y, tuple) else (y, None)
