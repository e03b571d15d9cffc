"""`targets=`: roles, regexes or a predicate -> sites. What matches nothing is an error that lists what is there."""

import re
from collections.abc import Callable, Sequence

from torch import nn

from featherweight.core.anatomy import anatomy, sites
from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.core.host import base_modules
from featherweight.core.lexicon import ROLES, UNIONS
from featherweight.core.site import Site, kind_of

Targets = str | Sequence[str] | Callable[[str, nn.Module], bool]

# These read the weights of their children without calling them: an adapter on such a child would be ignored.
UNCALLED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def resolve(model: nn.Module, targets: Targets, kinds: Sequence[str], where: str = "method.targets") -> list[Site]:
    """The sites that `targets`, the field `where`, names among modules of the kinds (`linear conv embedding norm
    other`).

    A string is a role (`"query"`, `"attention"`, `"linear"` ...), else a regex that must match a module's whole path or
    its end at a dot (`"q_proj"`, `"layers.[01].mlp.*"`). A sequence is the union of its entries, each of which must
    match. A predicate is called with (path, module). Raises InputError for whatever matches nothing.
    """
    open_to = [
        (p, m) for p, m in base_modules(model) if (kind_of(m) in kinds and p) or (m is model and kind_of(m) in kinds)
    ]
    if callable(targets):
        found = [Site(p, m) for p, m in open_to if targets(p, m)]
        if not found:
            raise InputError(nothing("the predicate", model, open_to, kinds, where=where))
    else:
        entries = (targets,) if isinstance(targets, str) else tuple(targets)
        matched = {t: matches(model, t, open_to, kinds, where) for t in entries}
        raise_all(nothing(repr(t), model, open_to, kinds, t, where) for t, sites in matched.items() if not sites)
        found = [s for sites in matched.values() for s in sites]
    raise_all(refused(found, model))
    return once(found, model)


def matches(
    model: nn.Module, target: str, open_to: list[tuple[str, nn.Module]], kinds: Sequence[str], where: str
) -> list[Site]:
    if target in ROLES:
        return [s for s in sites(model, target) if s.kind in kinds]
    try:
        pattern = re.compile(rf"(?:.*\.)?(?:{target})")
    except re.error as error:
        raise InputError(
            Problem("not a role and not a regex", where, got=f"{target!r} ({error})", fix=did_you_mean(target, ROLES))
        ) from error
    return [Site(p, m) for p, m in open_to if pattern.fullmatch(p)]


def once(sites: list[Site], model: nn.Module) -> list[Site]:
    """Each place once, in the model's order; a module named whole swallows its slices."""
    whole = {id(s.module) for s in sites if s.rows is None}
    order = {id(m): i for i, (_, m) in enumerate(base_modules(model))}
    kept: dict[tuple[int, str], Site] = {}
    for s in sites:
        if s.rows is None or id(s.module) not in whole:
            kept.setdefault((id(s.module), "" if s.rows is None else s.role), s)
    return sorted(kept.values(), key=lambda s: order[id(s.module)])


def nothing(
    what: str,
    model: nn.Module,
    open_to: list[tuple[str, nn.Module]],
    kinds: Sequence[str],
    entry: str = "",
    where: str = "method.targets",
) -> Problem:
    """The problem of a target that hit nothing: the modules and roles there are, and the nearest name."""
    there = anatomy(model)
    roles = [
        r for r in ROLES if any(s.kind in kinds for part in UNIONS.get(r, (r,)) for s in there.roles.get(part, []))
    ]
    shapes = sorted({re.sub(r"\d+", "N", p) for p, _ in open_to})
    near = did_you_mean(entry, [*roles, *{p.rsplit(".", 1)[-1] for p, _ in open_to}]) if entry else ""
    fix = (
        f"{near}; modules: {listed(shapes, 40)}; roles: {listed(roles)}"
        if near.startswith("did")
        else (f"modules: {listed(shapes, 40)}; roles: {listed(roles)}")
    )
    return Problem(f"{what} matches none of the model's {'/'.join(kinds)} modules", where, fix=fix)


def refused(sites: list[Site], model: nn.Module) -> list[Problem]:
    """The sites inside modules that read their children's weights without calling them."""
    deaf = [(p + "." if p else "", type(m).__name__) for p, m in base_modules(model) if isinstance(m, UNCALLED)]
    return [
        Problem(
            f"{kind} reads this module's weight without calling it",
            s.path,
            "an adapter that is not ignored",
            fix="leave it out of the targets",
        )
        for s in sites
        for prefix, kind in deaf
        if s.path.startswith(prefix) and s.path != prefix[:-1]
    ]
