"""The method and the task of a run, made from the values that describe them; every wrong field is reported."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from featherweight.cli.schema import noun_keys
from featherweight.cli.value import Value, fitted, toml_scalar
from featherweight.core.errors import InputError, Problem, did_you_mean
from featherweight.core.noun import Noun, nested


def noun(
    family: str, known: Callable[[], dict[str, type[Noun]]], values: Mapping[str, Value], problems: list[Problem],
    word: str = "",
) -> Noun | None:  # fmt: skip
    """The method, task or scheme that the values describe; None where they say nothing about it. `word`: what it is
    called in problems."""
    mine = {k.split(".", 1)[1]: v for k, v in values.items() if k.startswith(f"{family}.")}
    if not mine:
        return None
    kinds = known()
    kind = mine.pop("type", Value("type", "lora" if family == "method" else "", family))
    made = kinds.get(str(kind.raw).lower())
    if made is None:
        what = f"unknown {word or family}" if kind.raw else f"which {word or family}?"
        problems.append(Problem(what, kind.where, got=repr(kind.raw), fix=did_you_mean(str(kind.raw).lower(), kinds)))
        return None
    return built(made, mine, problems, kind.where)


def built(made: type[Any], mine: Mapping[str, Value], problems: list[Problem], where: str, **own: Any) -> Any:
    """A noun or another dataclass of these options, over `own`; None where they are wrong. `where`: what is said of
    none of them."""
    found: list[Problem] = []
    options = fields_of(made, mine, found)
    problems += found
    if found:
        return None
    try:
        return made(**{**own, **options})
    except InputError as error:
        problems += [placed(p, {k: v.where for k, v in mine.items()}, where) for p in error.problems]
        return None


def fields_of(made: type[Any], mine: Mapping[str, Value], found: list[Problem]) -> dict[str, Any]:
    """The options of a noun as the types of its fields."""
    keys, families = noun_keys(made), nested(made)
    options: dict[str, Any] = {}
    for name, family in families.items():
        held = noun(name, lambda family=family: dict(family.known), within(name, mine), found)  # type: ignore[misc]
        options |= {} if held is None else {name: held}
    for name, value in [(n, v) for n, v in mine.items() if n.partition(".")[0] not in families]:
        field_name, _, entry = name.partition(".")
        if field_name not in keys:
            fix = did_you_mean(field_name, keys) if keys else f"{made.__name__} has no options"
            found.append(Problem("unknown key", value.where, fix=fix))
            continue
        raw = Value(value.key, {entry: flag_scalar(value)}, value.where) if entry else value
        got, wrong = fitted(raw, keys[field_name].kind)
        found += [wrong] if wrong else []
        options[field_name] = options.get(field_name, {}) | got if entry and not wrong else got
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def within(field: str, mine: Mapping[str, Value]) -> dict[str, Value]:
    """The values of a field that is a noun itself: its name alone, `scheme.block`, or a table of both."""
    found: dict[str, Value] = {}
    for name, value in mine.items():
        if name == field and isinstance(value.raw, Mapping):
            found |= {f"{field}.{k}": Value(f"{value.key}.{k}", v, value.where) for k, v in value.raw.items()}
        elif name == field:
            found[f"{field}.type"] = value
        elif name.startswith(f"{field}."):
            found[name] = value
    return found


def flag_scalar(value: Value) -> Any:
    scalar = toml_scalar(str(value.raw)) if value.flag else value.raw
    return value.raw if scalar is None else scalar


def placed(problem: Problem, origins: Mapping[str, str], otherwise: str) -> Problem:
    """The problem at the place where the user wrote the value it is about: `--method.rank at layers.0.up`."""
    module, _, named = problem.where.rpartition(": ")
    field, gap, places = named.partition(" (")
    origin = origins.get(field) or origins.get(field.split(".")[-1])
    if origin is None:
        return replace(problem, where=problem.where or otherwise)
    return replace(problem, where=origin + (f" at {module}" if module else "") + gap + places)
