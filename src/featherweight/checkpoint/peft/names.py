"""How PEFT names modules: matching by exact path, dotted suffix or regex; and the shortest list that means a given
set.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from featherweight.core.encoded import like
from featherweight.core.errors import InputError, Problem, did_you_mean
from featherweight.core.part import transposed

PREFIX = "base_model.model."


def suffixed(path: str, names: Iterable[str]) -> bool:
    """Whether a path is one of the names or ends in `.name`."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def excluded(path: str, config: Mapping[str, Any]) -> bool:
    """Whether `exclude_modules` or `modules_to_save` takes a path out of the targets."""
    without = config.get("exclude_modules") or []
    if bool(re.fullmatch(without, path)) if isinstance(without, str) else suffixed(path, without):
        return True
    return any(re.match(rf"(^|.*\.){m}($|\..*)", path) for m in config.get("modules_to_save") or [])


def block(path: str, patterns: str | Sequence[str] | None) -> int | None:
    """The layer number that `layers_to_transform` is asked about: the first numbered part, or that after a pattern."""
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(?P<number>\d+)\.", path)
    else:
        named = [patterns] if isinstance(patterns, str) else patterns
        tries = (re.match(rf"(?:^|.*?\.){p}\.(?P<number>\d+)\.", path) for p in named)
        found = next((m for m in tries if m), None)
    return int(found["number"]) if found else None


def matched(path: str, config: Mapping[str, Any]) -> bool:
    """Whether a module is a target of a PEFT config: exclusion first, then regex, exact path, or suffix in the
    layers.
    """
    if excluded(path, config):
        return False
    targets = config.get("target_modules") or []
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    if path in targets:
        return True
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    if not suffixed(path, targets):
        return False
    return not layers or block(path, config.get("layers_pattern")) in layers


def pattern_value(path: str, patterns: Mapping[str, Any] | None, otherwise: Any) -> Any:
    """`rank_pattern`, `alpha_pattern`: the first key, as a regex anchored at the end of the path, that matches."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return otherwise


def tails(path: str) -> Iterator[str]:
    """The dotted ends of a path, shortest first: `a.b.c` -> `c`, `b.c`, `a.b.c`."""
    at = path.rfind(".")
    while at >= 0:
        yield path[at + 1 :]
        at = path.rfind(".", 0, at)
    yield path


def hit(modules: Iterable[str]) -> set[str]:
    """Every name that, by PEFT's matching, hits one of the modules."""
    return {tail for m in modules for tail in tails(m)}


def shortest(wanted: Collection[str], others: Collection[str]) -> list[str]:
    """The shortest list of suffixes that, by PEFT's matching, hits the wanted modules and none whose names, by `hit`,
    are `others`.
    """
    return sorted({next((t for t in tails(path) if t not in others), path) for path in wanted})


def named(wanted: Collection[str], modules: Collection[str]) -> list[str] | str:
    """Target modules for PEFT: the shortest list, or a regex of whole paths where one path is the end of another."""
    others = hit(set(modules) - set(wanted))
    ends = shortest(wanted, others)
    if others.isdisjoint(ends):
        return ends
    return "|".join(map(re.escape, sorted(wanted)))


def endings(wanted: Collection[str], modules: Collection[str]) -> list[str]:
    """Regexes, to be matched at the end of a path at a dot, that hit the wanted modules and none of the others."""
    others = hit(set(modules) - set(wanted))
    return [f"^{re.escape(t)}" if t in others else re.escape(t) for t in shortest(wanted, others)]


def regex(wanted: Collection[str], modules: Collection[str]) -> str:
    """A target regex that hits the wanted modules and none of the others.

    Bracketed, so that a name such as `query` is never taken for a role.
    """
    return f"(?:{'|'.join(endings(wanted, modules))})"


def targeted(config: Mapping[str, Any], modules: Collection[str], where: str) -> list[str]:
    """The modules a config names. Raises InputError where one of its names hits nothing (PEFT ignores that)."""
    targets = config.get("target_modules")
    if not targets:
        raise InputError(Problem("no target modules", f"{where}:target_modules", fix="list the modules' names"))
    hit = [m for m in modules if m and matched(m, config)]
    names = [targets] if isinstance(targets, str) else targets
    idle = [
        t
        for t in names
        if not any(matched(m, {**config, "target_modules": t if isinstance(targets, str) else [t]}) for m in hit)
    ]
    if idle:
        tails = sorted({m.rpartition(".")[2] for m in modules if m and not m.rpartition(".")[2].isdigit()})
        raise InputError(
            *(
                Problem(
                    "target that hits no module", f"{where}:target_modules", got=repr(t), fix=did_you_mean(t, tails)
                )
                for t in idle
            )
        )
    return hit


def width(module: nn.Module) -> int:
    """Rows of a module's weight seen as (out, in)."""
    return int(like(module).shape[1 if transposed(module) else 0])
