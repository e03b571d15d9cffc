"""EVA: start from the directions in which a layer's inputs vary most, and give rank where that explains most.

    X − mean = U S Vᵀ     A = V_rᵀ      B = 0      ρ = explained variance of each direction, S²/Σ(X − mean)²

X (tokens, in) are the inputs of a layer, padding and untrained tokens left out; their singular vectors are kept up to
date batch by batch. Batches are read until every direction in use has turned by less than arccos τ, τ = .99, between
two of them. Then the Σ r directions with the largest shares, over all layers, become the rows of A: the total rank
stays, a layer gets 0 to 2 r of it (0: no adapter), and its scale stays what it was. The identity, as B = 0.
Source: Paischer et al. 2024, arXiv:2410.07170; the update of the vectors: Ross et al. 2008, "Incremental learning for
robust visual tracking".
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem, listed
from featherweight.core.host import hosts, leave_host
from featherweight.core.part import Parts
from featherweight.core.site import Site
from featherweight.core.switch import refresh, switch_of
from featherweight.methods.starts.reading import Place, evaluating, grouped, listening, rows_of, run

RHO = 2.0  # the most rank that a layer may have, in multiples of what it was given
LIMIT = 1000  # batches, after which the directions are taken as they are
STARVED = 50  # batches, after which a layer that never had as many tokens as directions is an error

log = logging.getLogger("featherweight")


def prepare(
    method: Any, model: nn.Module, adapters: Mapping[str, Any], batches: Iterable[Mapping[str, Tensor]]
) -> None:
    """Set A and the ranks of fresh adapters; adapters that were trained (B ≠ 0) are left as they are."""
    places = [place(site, adapters) for site in method.hosts(model)]
    if any(bool(p.adapter.B.any()) for p in places):
        return
    budget = sum(p.adapter.A.shape[0] for p in places)
    with torch.no_grad(), evaluating(model):
        watch(model, places, batches, budget)
        for p in places:
            fill(p)
    settle(method, model, adapters, places)


def place(site: Site, adapters: Mapping[str, Any]) -> Place:
    there = adapters[site.path]
    adapter: Any = there.of[site.role if site.rows is not None else "whole"] if isinstance(there, Parts) else there
    return Place(site, adapter, min(round(adapter.A.shape[0] * RHO), *site.host.weight.shape))


def watch(model: nn.Module, places: list[Place], batches: Iterable[Mapping[str, Tensor]], budget: int) -> None:
    """Read batches, over and over, until the directions in use stay; leaves each place its rank."""
    reading = enumerate(cycle(batches))
    leads: list[Place] = []
    for number, batch in reading:
        if not leads:
            leads = grouped(model, places, batch)
        moving = [p for p in leads if not p.directions.settled(used(p, places))]
        if not moving or number >= (LIMIT if all(p.directions.seen for p in leads) else STARVED):
            break
        with listening(moving, rows_of(batch)):
            run(model, batch)
        if all(p.directions.seen for p in leads):
            distribute(places, budget)
    if not leads:
        raise InputError(Problem("no batch to start from", "EVA", "batches of the model's inputs"))
    starved = [p.site.path for p in leads if not p.directions.seen]
    if starved:
        raise InputError(
            Problem(
                "fewer tokens in every batch than directions", "EVA", got=listed(starved), fix="give larger batches"
            )
        )
    if moving:
        log.warning("EVA: the directions of %d layers still turn after %d batches", len(moving), number)


def used(lead: Place, places: list[Place]) -> int:
    """How many directions of a spectrum are in use; all that may be before the ranks are known."""
    return max(p.rank or p.most * (not p.directions.seen) for p in places if (p.lead or p) is lead)


def distribute(places: list[Place], budget: int) -> None:
    """Give the `budget` largest shares of variance, over all places, a rank each; equal ones in the model's order."""
    shares = [(-float(s), i) for i, p in enumerate(places) for s in p.directions.shares[: p.most]]
    for p in places:
        p.rank = 0
    for _, i in sorted(shares)[:budget]:
        places[i].rank += 1


def fill(p: Place) -> None:
    """The place's directions in its adapter, remade where the rank is another one; one of rank 0 is taken off later."""
    adapter, rank = p.adapter, p.rank
    if rank not in (0, adapter.A.shape[0]):
        trains = adapter.B.requires_grad
        adapter.size(p.site.host, rank)
        adapter.learn(trains)
        nn.init.zeros_(adapter.B)
    if rank:
        adapter.A.copy_(p.directions.vectors[:rank])


def settle(method: Any, model: nn.Module, adapters: Mapping[str, Any], places: list[Place]) -> None:
    """Take off the adapters of rank 0, and put the ranks on record: the method attached is what rebuilds the rest."""
    state = switch_of(model)
    name = next(
        n
        for n in state.attached
        if all(n in m.adapters and m.adapters[n] is adapters[p] for p, m in hosts(model) if p in adapters)
    )
    for p in places:
        if p.rank == 0:
            leave(p, name)
    power = 0.5 if method.rank_stabilized else 1.0
    ranks = {spot(p): p.rank for p in places if p.rank != method.rank}
    usual = 2 * method.rank if method.alpha is None else method.alpha
    alphas = {spot(p): p.adapter.scale * p.rank**power for p in places if p.rank}
    fitted = replace(method, rank_pattern=ranks, alpha_pattern={k: a for k, a in alphas.items() if a != usual})
    state.attached[name] = replace(state.attached[name], method=fitted)
    refresh(model)


def spot(p: Place) -> str:
    """A pattern that means this place alone."""
    return f"^{re.escape(p.site.path if p.site.rows is None else f'{p.site.path}.{p.site.role}')}"


def leave(p: Place, name: str) -> None:
    """Take an adapter, or the part of one, off its host."""
    module: Any = p.site.module
    there = module.adapters[name]
    p.adapter.requires_grad_(False)
    if isinstance(there, Parts) and len(there.rows) > 1:
        del there.parts[p.site.role], there.of[p.site.role]
        return
    del module.adapters[name]
    if not module.adapters:
        leave_host(module)
