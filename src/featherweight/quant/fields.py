"""What a scheme's fields and weights must be: every problem at once, each with the way out."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from featherweight.core.errors import InputError, Problem, did_you_mean

PER = ("tensor", "row")


def whole(noun: Any, name: str, least: int = 1, most: int | None = None) -> Iterator[Problem]:
    """The field is an int in [least, most]."""
    value = getattr(noun, name)
    if type(value) is not int or value < least or (most is not None and value > most):
        expected = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
        yield Problem("not a valid value", f"{type(noun).__name__}.{name}", expected, repr(value))


def choice(noun: Any, name: str, choices: Iterable[str]) -> Iterator[Problem]:
    """The field is one of these words."""
    value, known = getattr(noun, name), list(choices)
    if value not in known:
        where = f"{type(noun).__name__}.{name}"
        yield Problem("not a valid value", where, got=repr(value), fix=did_you_mean(str(value), known))


def flag(noun: Any, name: str) -> Iterator[Problem]:
    value = getattr(noun, name)
    if type(value) is not bool:
        yield Problem("not a valid value", f"{type(noun).__name__}.{name}", "true or false", repr(value))


def granularity(noun: Any) -> Iterator[Problem]:
    """`per` is "tensor", "row" or the number of elements of a block."""
    value = noun.per
    if value not in PER and (type(value) is not int or value < 1):
        where = f"{type(noun).__name__}.per"
        yield Problem("not a valid value", where, '"tensor", "row" or the elements of a block (64)', repr(value))


def weight(scheme: Any, W: Tensor) -> Tensor:
    """W as one flat detached tensor. Raises InputError for what no scheme can hold."""
    where, shape = type(scheme).__name__, tuple(W.shape)
    if not W.is_floating_point():
        raise InputError(Problem("not a floating-point tensor", where, got=str(W.dtype)))
    if W.dim() == 0:
        raise InputError(
            Problem(
                "a scalar has nothing to share a scale with", where, "one dimension or more", fix="leave it as it is"
            )
        )
    if W.numel() == 0:
        raise InputError(
            Problem("an empty tensor has nothing to encode", where, got=f"shape {shape}", fix="leave it as it is")
        )
    return W.detach().reshape(-1)
