"""Which modules are quantized, and why each of the others is not.

The linear layers of the blocks are, by default; norms, embeddings and heads stay as they are. What cannot be encoded
(a tied matrix, a class without a quantized form, some rows of a fused projection) is skipped with its reason.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from featherweight.core.anatomy import Anatomy, anatomy
from featherweight.core.errors import raise_all
from featherweight.core.host import base_modules, frozen_class
from featherweight.core.lexicon import EACH
from featherweight.core.site import Site, kind_of
from featherweight.core.targets import UNCALLED, Targets, matches, nothing
from featherweight.quant.classes import quantized_class
from featherweight.quant.quantized import Quantized

KINDS = ("linear", "embedding", "conv", "norm", "other")


@dataclass(frozen=True, eq=False)
class Place:
    """A module to quantize. `block` is the number of its block (the encoder's before the decoder's), None outside."""

    path: str
    module: Any
    role: str
    block: int | None


@dataclass(frozen=True)
class Skipped:
    """A module that keeps its tensors as they are; `parameters` counts a shared tensor where it is first found."""

    path: str
    reason: str
    parameters: int


@dataclass(frozen=True, eq=False)
class Choice:
    """What is quantized and what is not, in the model's order."""

    places: tuple[Place, ...]
    skipped: tuple[Skipped, ...]


def choose(model: nn.Module, targets: Targets = "linear", skip: Targets = ()) -> Choice:
    """The modules that `targets` names (roles, names, regexes or a predicate), less `skip` and what cannot be encoded.

    A skipped container takes all inside it along. Raises InputError for entries that match nothing.
    """
    there = anatomy(model)
    wanted, spared = found(model, targets, "targets", whole=True), found(model, skip, "skip", whole=False)
    owners: defaultdict[int, list[str]] = defaultdict(list)
    for path, module in base_modules(model):
        for p in module._parameters.values():
            owners[id(p)].append(path)
    places, skipped = [], []
    roles, blocks = roles_of(there), [(f"{path}.", i) for i, (path, _) in enumerate(there.blocks)]
    deaf = [(f"{p}." if p else "", type(m).__name__) for p, m in base_modules(model) if isinstance(m, UNCALLED)]
    for path, module in base_modules(model):
        own = [p for p in module._parameters.values() if p is not None]
        if not own and not isinstance(module, Quantized):
            continue
        reason = spare(path, spared) or refusal(module, path, wanted.get(path), roles, owners, deaf)
        if reason:
            skipped.append(Skipped(path, reason, sum(p.numel() for p in own)))
        else:
            block = next((i for prefix, i in blocks if path.startswith(prefix)), None)
            places.append(Place(path, module, roles.get(path, "") or leaf(path), block))
    return Choice(tuple(places), recounted(model, skipped))


def found(model: nn.Module, entries: Targets, where: str, whole: bool) -> dict[str, tuple[str, list[Site]]]:
    """path -> (the entry that names it, its sites). `whole`: among modules that may have a matrix, not containers."""
    open_to = [(p, m) for p, m in base_modules(model) if p and (not whole or "weight" in m._parameters or quantized(m))]
    if callable(entries):
        return {p: ("the predicate", [Site(p, m)]) for p, m in open_to if entries(p, m)}
    listed = (entries,) if isinstance(entries, str) else tuple(entries)
    sites = {e: matches(model, e, open_to, KINDS) for e in listed}
    raise_all(
        replace(nothing(repr(e), model, open_to, KINDS, e), what=f"{e!r} matches nothing", where=where)
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
    if kind == "other" and any(p is not None and p.dim() > 2 for p in module._parameters.values()):
        return "a stack of matrices, no linear layer"
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
    made, modules = [], dict(base_modules(model))
    for s in skipped:
        own = {id(p): p.numel() for p in modules[s.path]._parameters.values() if p is not None}
        made.append(replace(s, parameters=sum(n for i, n in own.items() if i not in seen)))
        seen |= set(own)
    return tuple(made)


def grouped(skipped: Sequence[Skipped]) -> list[tuple[str, int, int]]:
    """(reason, modules, parameters) of what was skipped, one line for many: the largest first."""
    modules, parameters = Counter(s.reason for s in skipped), Counter[str]()
    for s in skipped:
        parameters[s.reason] += s.parameters
    return [(reason, modules[reason], n) for reason, n in parameters.most_common()]
