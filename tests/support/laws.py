"""What the laws are made of: which cases a law meets, and how a model comes to hold an adapter that does something."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featherweight as fw
from featherweight.core.method import Method
from support.applies import prepared
from support.cases import METHODS, meaningless
from support.models import EVERY, disturb, tiny

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Largest difference allowed, relative to the largest output: bf16 keeps 8 bits, lost again at each of a dozen matmuls.
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}

# law -> the architectures it is for, how many are drawn for each method, and those that were
DRAWN: dict[str, tuple[tuple[str, ...], int, dict[str, list[str]]]] = {}


def chance(*what: str) -> int:
    """A number that is the same in every run and process."""
    return int(hashlib.sha256(":".join(what).encode()).hexdigest()[:8], 16)


def law(
    among: Sequence[str] = EVERY, each: int = 5, dtypes: bool = True, which: Callable[[Any], bool] = lambda _: True
) -> Any:
    """Run a test for every method on `each` architectures, drawn anew for each law; all others carry the `sweep` mark.

    `which` keeps the methods whose traits make the law one for them.
    """

    def over(test: Any) -> Any:
        found = []
        for name in [n for n, m in METHODS.items() if which(m)]:
            there = [a for a in among if not meaningless(name, a)]
            drawn = sorted(there, key=lambda a: chance(test.__name__, name, a))[:each]
            DRAWN.setdefault(test.__name__, (tuple(among), each, {}))[2][name] = drawn
            for arch, dtype in itertools.product(there, DTYPES if dtypes else ["fp32"]):
                mine = not dtypes or chance(test.__name__, name, arch, "dtype") % 2 == (dtype == "bf16")
                marks = [] if mine and arch in drawn else [pytest.mark.sweep]
                found.append(pytest.param(METHODS[name], arch, DTYPES[dtype], id=f"{name}-{arch}-{dtype}", marks=marks))
        return pytest.mark.parametrize(("method", "arch", "dtype"), found)(test)

    return over


def attached(
    method: Method,
    arch: str,
    dtype: torch.dtype = torch.float32,
    *,
    name: str = "a",
    moved: bool = True,
    to: nn.Module | None = None,
    **options: Any,
) -> nn.Module:
    """A tiny model (or the one given) with the method on it: at its start, or moved away from it."""
    torch.manual_seed(5)
    model = tiny(arch, dtype) if to is None else to
    prepared(fw.attach(model, method, name, **options), method, arch, name)
    if moved:
        disturb(model)
    return model


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest of b."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {k: p for k, p in model.named_parameters() if p.requires_grad}
