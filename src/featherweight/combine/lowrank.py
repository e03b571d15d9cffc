"""Low-rank adapters into one LoRA: by their factors, or by the changes that they make."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featherweight.combine.noun import Combination
from featherweight.combine.seats import Seat, Seated, lora_on, put, seats, width
from featherweight.core.adapter import Adapter
from featherweight.core.base import Base
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.part import PartBase
from featherweight.methods.lora import LoRA
from featherweight.methods.lowrank import LowRank

Pair = tuple[Tensor, Tensor]


class Source(NamedTuple):
    """One adapter that goes into a seat of the result."""

    name: str
    weight: float
    seated: Seated


Placed = dict[Seat, list[Source]]


def placed(model: nn.Module, given: Mapping[str, Mapping[str, Adapter]], weights: Mapping[str, float]) -> Placed:
    """seat -> its sources. Raises InputError where one sits on a whole projection and another on slices of it."""
    found: defaultdict[Seat, list[Source]] = defaultdict(list)
    for name, adapters in given.items():
        for seat, seated in seats(model, adapters).items():
            found[seat].append(Source(name, weights[name], seated))
    torn = {s.path for s in found if s.role} & {s.path for s in found if not s.role}
    raise_all(
        Problem("one adapter sits on the whole projection and another on slices of it", path,
                fix="train them on the same targets")
        for path in sorted(torn)
    )  # fmt: skip
    return dict(found)


def combined(model: nn.Module, found: Placed, how: Combination, chance: torch.Generator) -> dict[Seat, Pair]:
    """The factors of the result on every seat."""
    raise_all(p for seat, sources in found.items() for p in refused(seat, sources, how))
    work = from_changes if how.on_changes else from_factors
    with torch.no_grad():
        return {seat: work(sources, how, chance) for seat, sources in found.items()}


def refused(seat: Seat, sources: Sequence[Source], how: Combination) -> list[Problem]:
    """Why the sources of a seat cannot be combined this way."""
    if how.on_changes:
        return []
    wrong = [
        Problem(
            "not a plain LoRA, whose factors could be combined",
            str(seat),
            got=f"{s.name}: {type(s.seated.adapter).__name__}",
            fix="combine the changes: SVD(rank=16), or give the way a rank",
        )
        for s in sources
        if not isinstance(s.seated.adapter, LowRank)
    ]
    ranks = {s.name: len(s.seated.adapter.factors()[0]) for s in sources if isinstance(s.seated.adapter, LowRank)}
    if len(set(ranks.values())) > 1 and not is_cat(how):
        fix = "Cat() is exact for any ranks, SVD(rank=16) near; TIES, DARE and MagnitudePrune take a rank too"
        what = f"{type(how).__name__} adds factors of one rank"
        wrong.append(Problem(what, str(seat), "equal ranks", str(ranks), fix))
    return wrong


def is_cat(how: Combination) -> bool:
    return type(how).factors is not Combination.factors


def from_factors(sources: Sequence[Source], how: Combination, chance: torch.Generator) -> Pair:
    low: list[Any] = [s.seated.adapter for s in sources]
    pairs = [a.factors() for a in low]
    scaled = [s.weight * a.scale for s, a in zip(sources, low, strict=True)]
    return how.factors([A for A, _ in pairs], [B for _, B in pairs], scaled, chance)


def from_changes(sources: Sequence[Source], how: Combination, chance: torch.Generator) -> Pair:
    mixed = how.mix([change(s) for s in sources], [s.weight for s in sources], chance)
    return best(mixed, min(how.to_rank or largest_rank(sources), width(sources[0].seated)))


def largest_rank(sources: Sequence[Source]) -> int:
    """The rank of the result where none is asked for. Raises InputError where no source has one."""
    ranks = [len(s.seated.adapter.factors()[0]) for s in sources if isinstance(s.seated.adapter, LowRank)]
    if not ranks:
        raise InputError(Problem("no source has a rank", "how.rank", fix="give one: SVD(rank=16)"))
    return max(ranks)


def change(source: Source) -> Tensor:
    """ΔW as a matrix (out, in); an embedding's is (H, V). Raises InputError where more than the weight changes."""
    adapter, host, rows = source.seated
    if isinstance(adapter, LowRank):
        return adapter.delta().float()
    base: Any = Base(host) if rows is None and isinstance(host, nn.Module) else PartBase(Base(host.host), host)
    new = adapter.merge(base)
    more = [n for n, W in new.items() if n != "weight" and not torch.equal(W, base[n])]
    if more:
        raise InputError(Problem("a LoRA cannot hold what this adapter changes", source.name, "weights alone",
                                 ", ".join(more), "combine it with adapters of its own method"))  # fmt: skip
    delta = (new["weight"].float() - base["weight"].float()) if "weight" in new else torch.zeros_like(base["weight"])
    return delta.T if isinstance(host, nn.Embedding) else delta.flatten(1)


def best(M: Tensor, rank: int) -> Pair:
    """The factors of the best approximation of this rank: A = Vᵀ, B = U S."""
    U, S, V = torch.linalg.svd(M, full_matrices=False)
    return V[:rank], U[:, :rank] * S[:rank]


def lora(model: nn.Module, pairs: Mapping[Seat, Pair], methods: Sequence[Any]) -> LoRA:
    """The method whose adapters hold these factors."""
    asked = [m.targets for m in methods if isinstance(m, LoRA) and not callable(m.targets)]
    return lora_on(model, {seat: len(A) for seat, (A, _) in pairs.items()}, asked if len(asked) == len(methods) else ())


def fill(model: nn.Module, adapters: Mapping[str, Adapter], pairs: Mapping[Seat, Pair]) -> None:
    made = seats(model, adapters)
    for seat, (A, B) in pairs.items():
        put(made[seat].adapter, A, B)
