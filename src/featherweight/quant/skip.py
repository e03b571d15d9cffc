"""Which modules are quantized, and why each of the others is not.

The linear layers of the blocks are, by default, and the 3-d weights of experts; norms, embeddings and heads stay as
they are. What cannot be encoded (a tied matrix, a class without a quantized form, some rows of a fused projection) is
skipped with its reason.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from featherweight.core.anatomy import Anatomy, anatomy
from featherweight.core.errors import raise_all
from featherweight.core.host import base_modules, frozen_class
from featherweight.core.lexicon import EACH, ROLES, UNIONS
from featherweight.core.site import Site, kind_of
from featherweight.core.stack import stacked
from featherweight.core.targets import UNCALLED, Targets, matches, nothing
from featherweight.quant.classes import quantized_class
from featherweight.quant.place import Place, many, stacks
from featherweight.quant.quantized import Quantized
from featherweight.quant.scheme import Scheme

KINDS = ("linear", "embedding", "conv", "norm", "other")


@dataclass(frozen=True)
class Skipped:
    """A module, or one 3-d weight of experts, that keeps its tensors as they are; `parameters` counts a shared tensor
    where it is first found.
    """

    path: str
    reason: str
    parameters: int


@dataclass(frozen=True, eq=False)
class Choice:
    """What is quantized and what is not, in the model's order."""

    places: tuple[Place, ...]
    skipped: tuple[Skipped, ...]


def choose(model: nn.Module, targets: Targets = "linear", skip: Targets = (), scheme: Scheme | None = None) -> Choice:
    """The modules that `targets` names (roles, names, regexes or a predicate), less `skip` and what cannot be encoded
    (by `scheme`, where it is known).

    A skipped container takes all inside it along. Raises InputError for entries that match nothing.
    """
    there = anatomy(model)
    roles, blocks = roles_of(there), [(f"{path}.", i) for i, (path, _) in enumerate(there.blocks)]
    experts = list(stacks(model, blocks))
    wanted, spared = (found(model, e, w, experts) for e, w in ((targets, "targets"), (skip, "skip")))
    owners: defaultdict[int, list[str]] = defaultdict(list)
    for path, module in base_modules(model):
        for p in module._parameters.values():
            owners[id(p)].append(path)
    places, skipped = [], []
    deaf = [(f"{p}." if p else "", type(m).__name__) for p, m in base_modules(model) if isinstance(m, UNCALLED)]
    for path, module in base_modules(model):
        mine = [place for place in experts if place.module is module]
        for place in mine:
            reason = spare(place.path, spared) or unfit(place, place.path in wanted, scheme, owners)
            if reason:
                skipped.append(Skipped(place.path, reason, place.own.numel()))
            else:
                places.append(place)
        own = owned(module)
        if not own and not isinstance(module, Quantized):
            continue
        reason = spare(path, spared) or refusal(module, path, wanted.get(path), roles, owners, deaf)
        if reason:
            skipped.append(Skipped(path, reason, sum(p.numel() for p in own)))
        else:
            block = next((i for prefix, i in blocks if path.startswith(prefix)), None)
            places.append(Place(path, module, roles.get(path, "") or leaf(path), block))
    return Choice(tuple(places), recounted(model, skipped))


def found(
    model: nn.Module, entries: Targets, where: str, experts: Sequence[Place]
) -> dict[str, tuple[str, list[Site]]]:
    """path -> (the entry that names it, its sites), 3-d weights of experts by the paths of the tensors. Targets are
    among modules that may have a matrix, what to skip may be a container.
    """
    whole = where == "targets"
    open_to = [(p, m) for p, m in base_modules(model) if p and (not whole or "weight" in m._parameters or quantized(m))]
    if callable(entries):
        pairs = [*open_to, *((place.path, place.module) for place in experts)]
        return {p: ("the predicate", [Site(p, m)]) for p, m in pairs if entries(p, m)}
    listed = (entries,) if isinstance(entries, str) else tuple(entries)
    sites = {e: matches(model, e, open_to, KINDS, where) for e in listed}
    for entry, hits in sites.items():
        hits += [Site(place.path, place.module) for place in experts if means(entry, place)]
    raise_all(
        replace(nothing(repr(e), model, open_to, KINDS, e, where), what=f"{e!r} matches nothing")
        for e, hits in sites.items()
        if not hits
    )
    made: dict[str, tuple[str, list[Site]]] = {}
    for entry, hits in sites.items():
        for site in hits:
            made.setdefault(site.path, (entry, []))[1].append(site)
    return made


def quantized(module: nn.Module) -> bool:
    return isinstance(module, Quantized)


def means(entry: str, place: Place) -> bool:
    """Whether an entry of targets or skip names a 3-d weight of experts: a role of its own, or a path."""
    if entry in ROLES:
        roles = UNIONS.get(entry, (entry,))
        return (entry == "linear" and place.block is not None and many(place)) or set(place.role.split("+")) <= {*roles}
    return bool(re.fullmatch(rf"(?:.*\.)?(?:{entry})(?:\.{place.name})?", place.path))


def unfit(place: Place, wanted: bool, scheme: Scheme | None, owners: dict[int, list[str]]) -> str:
    """Why a 3-d weight of experts is not quantized, "" where it is."""
    if not wanted:
        return "not a target" if many(place) else "a stack of matrices, no linear layer"
    if scheme is not None and not scheme.stacks:
        return f"what each expert reads is not known: {type(scheme).__name__} is calibrated on it"
    return "tied to another module" if len(owners[id(place.own)]) > 1 else ""


def spare(path: str, spared: dict[str, tuple[str, list[Site]]]) -> str:
    """Why the user wants this module spared, "" where not."""
    hit = next((p for p in spared if path == p or path.startswith(f"{p}.")), None)
    return f"skip: {spared[hit][0]}" if hit is not None else ""


def refusal(
    module: Any, path: str, wanted: tuple[str, list[Site]] | None, roles: dict[str, str],
    owners: dict[int, list[str]], deaf: list[tuple[str, str]],
) -> str:  # fmt: skip
    """Why a module is not quantized, "" where it is."""
    if isinstance(module, Quantized):
        return f"quantized already: {module.scheme!r}"
    if wanted is None:
        return plain_reason(module, roles.get(path, ""))
    cls = frozen_class(module)
    if quantized_class(cls) is None:
        return f"no quantized form of {cls.__name__}"
    reader = next((name for prefix, name in deaf if path.startswith(prefix)), None)
    if reader is not None:
        return f"{reader} reads its weight without calling it"
    tied = [p for p in owners[id(module.weight)] if p != path]
    if tied:
        return f"tied to {tied[0]}"
    named = {site.role for site in wanted[1]}
    missing = [r for r in roles.get(path, "").split("+") if r not in named]
    if missing and all(site.rows is not None for site in wanted[1]):
        return f"holds {'+'.join(missing)} rows too: name it whole"
    return ""


def plain_reason(module: nn.Module, role: str) -> str:
    """What a module that nobody asked for is."""
    if role in ("head", "embedding", "norm"):
        return role
    kind = kind_of(module)
    return {"linear": "not a target", "conv": "convolution", "other": "own tensors"}.get(kind, kind)


def roles_of(there: Anatomy) -> dict[str, str]:
    """path -> its role; of a fused projection the roles of its slices: `query+key+value`."""
    roles: defaultdict[str, list[str]] = defaultdict(list)
    for role in EACH:
        for site in there.roles.get(role, []):
            if role not in roles[site.path]:
                roles[site.path].append(role)
    return {path: "+".join(names) for path, names in roles.items()}


def leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def recounted(model: nn.Module, skipped: Sequence[Skipped]) -> tuple[Skipped, ...]:
    """The same with the parameters that the modules have now: weights are tied after a model was chosen from."""
    seen: set[int] = set()
    made, modules, apart = [], dict(base_modules(model)), {place.path: place for place in stacks(model, [])}
    for s in skipped:
        own = [apart[s.path].own] if s.path in apart else owned(modules[s.path])
        counts = {id(p): p.numel() for p in own}
        made.append(replace(s, parameters=sum(n for i, n in counts.items() if i not in seen)))
        seen |= set(counts)
    return tuple(made)


def owned(module: Any) -> list[Any]:
    """A module's tensors but for 3-d weights of experts, which are listed by themselves."""
    return [p for n, p in module._parameters.items() if p is not None and n not in stacked(module)]


def grouped(skipped: Sequence[Skipped]) -> list[tuple[str, int, int]]:
    """(reason, modules, parameters) of what was skipped, one line for many: the largest first."""
    modules, parameters = Counter(s.reason for s in skipped), Counter[str]()
    for s in skipped:
        parameters[s.reason] += s.parameters
    return [(reason, modules[reason], n) for reason, n in parameters.most_common()]
