"""Modules without values: as their constructors leave them, but for the values."""

from typing import Any

import pytest
import torch
from torch import nn

from featherweight.core.adapter import Adapter
from featherweight.core.blank import begin, blank


class Plain(nn.Module):
    pass


def kinds(module: nn.Module) -> dict[str, Any]:
    """What a module holds, containers by their type and content."""
    return {name: (type(value), value) for name, value in vars(module).items() if name != "_parameters"}


def test_a_module_begins_as_torch_begins_it() -> None:
    begun = object.__new__(Plain)
    begin(begun)
    assert kinds(begun) == kinds(Plain()) == kinds(Adapter())
    again = object.__new__(Plain)
    begin(again)
    held = [name for name, value in vars(again).items() if isinstance(value, dict | set)]
    assert held
    assert all(vars(again)[name] is not vars(begun)[name] for name in held)


@pytest.mark.parametrize(
    ("cls", "args", "kwargs"),
    [
        (nn.Linear, (3, 2), {"bias": False, "dtype": torch.float64}),
        (nn.Conv2d, (3, 2, 3), {"stride": 2}),
        (nn.Dropout, (0.1,), {}),
    ],
)
def test_a_blank_module_is_what_its_constructor_makes(cls: Any, args: Any, kwargs: Any) -> None:
    made, wanted = blank(cls, *args, **kwargs), cls(*args, **kwargs)
    assert type(made) is cls
    assert kinds(made) == kinds(wanted)
    shapes = {n: (p.shape, p.dtype, p.requires_grad) for n, p in wanted.named_parameters()}
    assert {n: (p.shape, p.dtype, p.requires_grad) for n, p in made.named_parameters()} == shapes
