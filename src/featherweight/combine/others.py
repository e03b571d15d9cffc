"""What is no low-rank change: scales, and tensors that replace the base's."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.combine.linear import Geometric, Linear
from featherweight.combine.noun import Combination, weighted
from featherweight.combine.seats import Seat, Seated, seats
from featherweight.core.adapter import Adapter, Replace
from featherweight.core.base import read
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.methods.ia3 import Rescale, RescaleInput

SCALES = (Rescale, RescaleInput)
Given = Mapping[str, Mapping[str, Adapter]]  # name -> path -> adapter


def kind(adapters: Mapping[str, Adapter], model: nn.Module) -> str:
    """What the adapters of one name are made of: scales, replacements, or else."""
    own = [s.adapter for s in seats(model, adapters).values()]
    if all(isinstance(a, SCALES) for a in own):
        return "scales"
    return "replacements" if all(isinstance(a, Replace) for a in own) else ""


def mixed(
    model: nn.Module, made: Mapping[str, Adapter], given: Given, weights: Mapping[str, float], how: Combination,
    chance: torch.Generator,
) -> None:  # fmt: skip
    """Fill the result `made` from the sources that have the seat."""
    known = {name: seats(model, adapters) for name, adapters in given.items()}
    done: set[int] = set()
    with torch.no_grad():
        for seat, result in seats(model, made).items():
            sources = {n: found[seat] for n, found in known.items() if seat in found}
            for part, p in result.adapter.named_parameters():
                if id(p) not in done:
                    done.add(id(p))
                    tensors = [s.adapter.get_parameter(part) for s in sources.values()]
                    p.copy_(one(seat, part, result, tensors, [weights[n] for n in sources], how, chance))


def one(
    seat: Seat, part: str, result: Seated, tensors: Sequence[Tensor], weights: Sequence[float], how: Combination,
    chance: torch.Generator,
) -> Tensor:  # fmt: skip
    """One tensor of the result."""
    if isinstance(how, Geometric):
        return multiplied(seat, part, tensors, weights)
    if isinstance(result.adapter, SCALES):
        return weighted(tensors, weights)
    base = own(result.host, part).to(tensors[0].dtype)
    return base + how.mix([t - base for t in tensors], weights, chance)


def own(host: Any, part: str) -> Tensor:
    """The base's tensor, as the adapter sees it."""
    return read(host, part) if isinstance(host, nn.Module) else getattr(host, part)


def multiplied(seat: Seat, part: str, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if any(bool((t <= 0).any()) for t in tensors):
        raise InputError(Problem("a scale that is not above 0 has no logarithm", f"{seat}.{part}", fix="how=Linear()"))
    return weighted([t.log() for t in tensors], weights).exp()


def check(names: Sequence[str], methods: Sequence[Any], kinds: Sequence[str], how: Combination) -> None:
    """Raise InputError where these adapters cannot be combined this way."""
    wrong = []
    if len(set(kinds)) > 1 or any(m != methods[0] for m in methods):
        got = "; ".join(f"{n}: {m!r}" for n, m in zip(names, methods, strict=True))
        fix = "SVD(rank=16) brings the weights' changes of any methods to one LoRA"
        wrong.append(Problem("adapters of different methods", "combine", "one method for all", got, fix))
    elif kinds[0] == "scales" and type(how) not in (Linear, Geometric):
        wrong.append(Problem("not a way to combine scales", "how", "Linear() or Geometric()", repr(how)))
    elif kinds[0] == "replacements" and isinstance(how, Geometric):
        wrong.append(Problem("Geometric multiplies scales, and these are differences", "how", "Linear()", repr(how)))
    raise_all(wrong)
