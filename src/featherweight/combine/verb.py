"""`combine`: several attached adapters into one more."""

from collections.abc import Mapping
from math import isfinite

import torch
from torch import nn

from featherweight.checkpoint.load import quiet_chance, undone
from featherweight.checkpoint.peft.common import head_paths
from featherweight.checkpoint.save import portable
from featherweight.combine import lowrank, others
from featherweight.combine.linear import Geometric, Linear
from featherweight.combine.noun import Combination
from featherweight.core.adapter import Adapter
from featherweight.core.attach import attach
from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all
from featherweight.core.method import Method
from featherweight.core.state import adapters
from featherweight.core.switch import switch_of

Own = dict[str, Mapping[str, Adapter]]  # name -> path -> adapter


def combine(
    model: nn.Module, weights: Mapping[str, float], how: Combination | None = None, name: str = "combined"
) -> nn.Module:
    """Attach, under `name`, one adapter made of others by their weights, in place; it is for use, and the only active
    one. It is an adapter like any other: it saves, merges and trains.

    how: Linear() by default; Cat(), SVD(rank), TIES(density), DARE(density, seed), MagnitudePrune(density), and
        Geometric() for scales. LoRA of any ranks, or with SVD or a rank whatever changes weights alone; (IA)³;
        replacements (biases, norms, heads) of one method. Task heads are mixed as replacements.
    Raises InputError for unknown names, and for adapters that do not go together; the model is then as it was.
    """
    how = Linear() if how is None else how
    check(model, weights, how)
    attached = switch_of(model).attached
    methods = [attached[n].method for n in weights]
    heads: Own = {}
    trunks: Own = {}
    for n in weights:
        own = adapters(model, n)
        apart = head_paths(model, own) if attached[n].head else []
        heads[n] = {p: own[p] for p in apart}
        trunks[n] = {p: a for p, a in own.items() if p not in apart}
    chance = torch.Generator().manual_seed(int(getattr(how, "seed", 0)))
    with undone(model, name), quiet_chance(model):
        result(model, name, methods, trunks, any(heads.values()), weights, how, chance)
        made = adapters(model, name)
        mine = {p: made[p] for own in heads.values() for p in own}
        sources = {n: own for n, own in heads.items() if own}
        others.mixed(model, mine, sources, weights, Linear() if isinstance(how, Geometric) else how, chance)
    return model


def result(
    model: nn.Module, name: str, methods: list[Method], trunks: Own, head: bool, weights: Mapping[str, float],
    how: Combination, chance: torch.Generator,
) -> None:  # fmt: skip
    """Attach the result and fill all but its head."""
    kinds = [others.kind(own, model) for own in trunks.values()]
    if any(kinds) and not how.on_changes:
        portables = [portable(m, model) for m in methods]
        others.check(list(weights), portables, kinds, how)
        attach(model, portables[0], name, head=head, train=False)
        made = {p: a for p, a in adapters(model, name).items() if p in next(iter(trunks.values()))}
        others.mixed(model, made, trunks, weights, how, chance)
        return
    if isinstance(how, Geometric):
        got = repr(how)
        raise InputError(Problem("Geometric multiplies scales, and these are sums", "how", "Linear() or Cat()", got))
    pairs = lowrank.combined(model, lowrank.placed(model, trunks, weights), how, chance)
    attach(model, lowrank.lora(model, pairs, methods), name, head=head, train=False)
    lowrank.fill(model, {s.path: adapters(model, name)[s.path] for s in pairs}, pairs)


def check(model: nn.Module, weights: Mapping[str, float], how: Combination) -> None:
    attached = switch_of(model).attached
    if not isinstance(weights, Mapping) or not weights:
        raise InputError(Problem("which adapters?", "weights", '{"fr": 0.7, "law": 0.3}', repr(weights)))
    given: object = how
    if not isinstance(given, Combination):
        fix = "Linear(), Cat(), SVD(rank), TIES(density), DARE(density), MagnitudePrune(density) or Geometric()"
        raise InputError(Problem("not a way to combine", "how", got=repr(how), fix=fix))
    wrong = [
        Problem("no adapter of this name", "weights", got=repr(n), fix=did_you_mean(n, attached))
        for n in weights
        if n not in attached
    ]
    wrong += [Problem("not a weight", f"weights[{n!r}]", "a finite number", repr(w)) for n, w in weights.items()
              if isinstance(w, bool) or not isinstance(w, int | float) or not isfinite(w)]  # fmt: skip
    raise_all([*wrong, *how.problems()])
