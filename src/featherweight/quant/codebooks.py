"""Code books: the levels in [-1, 1] of each format, by code; the codecs that use them are in `coded.py`.

A table is named kind + bits: "nf4", "int3", "dynamic8". A level that stands twice (-0 beside 0) is encoded as its first
code; a level below -1 (integers' -2^(k-1)) is never the nearest.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LEVELS: dict[str, tuple[float, ...]] = {}  # name -> levels by code
MADE: dict[tuple[Any, ...], Tensor] = {}  # constants that exist already: a layer decodes in every step


def add(name: str, levels: tuple[float, ...]) -> None:
    """Make a table known, in float32's values."""
    LEVELS[name] = tuple(torch.tensor(levels, dtype=torch.float32).tolist())


def levels(name: str, like: Tensor) -> Tensor:
    """The table by code, float32, on a tensor's device."""
    return constant(("decode", name), LEVELS[name], like)


def searched(name: str, like: Tensor) -> Tensor:
    """The table to encode with: second copies of a level are moved where nothing is near."""
    held = LEVELS[name]
    return constant(("encode", name), tuple(-2.0 if v in held[:i] else v for i, v in enumerate(held)), like)


def constant(key: tuple[str, str], values: tuple[float, ...], like: Tensor) -> Tensor:
    """A constant of a compiled graph, or the one tensor of that device."""
    if torch.compiler.is_compiling() or type(like) is not Tensor:
        return torch.tensor(values, device=like.device)
    made = MADE.get((*key, like.device))
    if made is None:
        with torch.inference_mode(False):
            made = MADE[(*key, like.device)] = torch.tensor(values, device=like.device)
    return made


def bits(name: str) -> int:
    return (len(LEVELS[name]) - 1).bit_length()


def zero(name: str) -> int:
    """The code of 0: what a packed tail is filled up with."""
    return LEVELS[name].index(min(LEVELS[name], key=abs))


def reach(name: str) -> float:
    """The farthest that a point of [-1, 1] can lie from its level."""
    held = sorted(v for v in LEVELS[name] if v >= -1)
    gaps = [(b - a) / 2 for a, b in pairwise(held)]
    return max(*gaps, held[0] + 1, 1 - held[-1])


def idempotent(name: str) -> bool:
    """Whether a block's largest element stays its largest: both ends are levels."""
    return {-1.0, 1.0} <= set(LEVELS[name])
