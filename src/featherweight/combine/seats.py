"""Where adapters sit: a seat is a host, or the rows of one slice of it; and a LoRA that sits on given seats only."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featherweight.checkpoint.peft.lora import pattern, usual
from featherweight.checkpoint.peft.names import regex
from featherweight.core.adapter import Adapter
from featherweight.core.host import base_modules
from featherweight.core.part import Part, Parts
from featherweight.core.site import Site
from featherweight.core.targets import resolve
from featherweight.methods.lora import LoRA

KINDS = ("linear", "conv", "embedding")


class Seat(NamedTuple):
    """`role` is "" for the whole of the host."""

    path: str
    role: str = ""

    def __str__(self) -> str:
        return f"{self.path}.{self.role}" if self.role else self.path


class Seated(NamedTuple):
    """An adapter on a seat; `rows` are those of the slice, `host` offers the tensors as the adapter sees them."""

    adapter: Adapter
    host: Any
    rows: Tensor | None = None


def seats(model: nn.Module, adapters: Mapping[str, Adapter]) -> dict[Seat, Seated]:
    """The seats of the adapters on these paths."""
    modules, found = dict(base_modules(model)), {}
    for path, adapter in adapters.items():
        if not isinstance(adapter, Parts):
            found[Seat(path)] = Seated(adapter, modules[path])
            continue
        for role, rows in adapter.rows.items():
            own: Any = adapter.of[role]
            found[Seat(path, role if rows is not None else "")] = Seated(own, Part(modules[path], rows), rows)
    return found


def seat_of(site: Site) -> Seat:
    return Seat(site.path, site.role if site.rows is not None else "")


def lora_on(model: nn.Module, ranks: Mapping[Seat, int], asked: Iterable[Any] = ()) -> LoRA:
    """The LoRA of scale 1 that sits on these seats with these ranks and nowhere else.

    `asked` are targets that may say so already, and then are kept as they are.
    """
    names = tuple(dict.fromkeys(t for targets in asked for t in ((targets,) if isinstance(targets, str) else targets)))
    there = {seat_of(s) for s in resolve(model, names, KINDS)} if names else set()
    if there != set(ranks):
        paths = [p for p, _ in base_modules(model)]
        whole = [seat.path for seat in ranks if not seat.role]
        roles = dict.fromkeys(seat.role for seat in ranks if seat.role)
        names = (*([regex(whole, paths)] if whole else []), *roles)
        there = {seat_of(s) for s in resolve(model, names, KINDS)}
    every = {str(seat): ranks.get(seat, 0) for seat in there}
    rank = usual(ranks.values())
    other = pattern(every, rank)
    return LoRA(rank=rank, alpha=rank, targets=names, rank_pattern=other, alpha_pattern=other)


def width(seated: Seated) -> int:
    """The most that a rank can be on a seat."""
    weight = seated.host.weight
    return int(min(weight.shape[0], weight[0].numel()))


def put(adapter: Any, A: Tensor, B: Tensor) -> None:
    """Fill a low-rank adapter, the rest of its rank with zeros."""
    with torch.no_grad():
        for own, given, axis in ((adapter.A, A, 0), (adapter.B, B, 1)):
            own.zero_()
            own.narrow(axis, 0, given.shape[axis]).copy_(given.reshape(*shape(own, given.shape[axis], axis)))


def shape(own: Tensor, rank: int, axis: int) -> list[int]:
    sizes = list(own.shape)
    sizes[axis] = rank
    return sizes
