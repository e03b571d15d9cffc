"""One value of a run's configuration, where it came from, and whether it fits the type that its key has."""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from featherweight.core.errors import Problem


@dataclass(frozen=True, slots=True)
class Value:
    """`raw` as it stands in the file, or the flag's text; `where` is run.toml:7:method.rank or --method.rank."""

    key: str
    raw: Any
    where: str
    flag: bool = False


def fitted(value: Value, kind: Any) -> tuple[Any, Problem | None]:
    """The value as `kind` (a type hint), or the problem with it. Text of a flag is read as TOML would read it."""
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(kind, config={"arbitrary_types_allowed": True})
    message = ""
    for candidate in candidates(value):
        try:
            made = adapter.validate_python(candidate)
        except ValidationError as error:
            message = message or first(error)
            continue
        if isinstance(candidate, str) and not value.flag and isinstance(made, int | float):
            message = f"{described(kind)}, without quotes"
            continue
        return made, None
    return None, Problem("wrong value", value.where, message or described(kind), shown(value))


def candidates(value: Value) -> Iterator[Any]:
    """What a flag's text may mean, most literal last: a TOML value, a comma-separated list, the text itself."""
    if isinstance(value.raw, str) and value.raw.lower() == "none":  # TOML has no null of its own
        yield None
    if not value.flag or not isinstance(value.raw, str):
        yield value.raw
        return
    scalar = toml_scalar(value.raw)
    if scalar is not None:
        yield scalar
    if re.fullmatch(r"[\w.-]+(,[\w.-]+)+", value.raw):
        yield tuple(value.raw.split(","))
    yield value.raw


def toml_scalar(text: str) -> Any:
    """The text as a TOML value (numbers, booleans, lists, inline tables), or None where it is none."""
    try:
        parsed = tomllib.loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        return None
    return parsed["v"] if list(parsed) == ["v"] else None


def first(error: Any) -> str:
    """What pydantic would have expected, in words."""
    found = error.errors(include_url=False)
    said = [str(e["msg"]).removeprefix("Input should be ").removeprefix("a valid ") for e in found]
    said = [re.sub(r",? unable to parse .*", "", s).replace("integer", "whole number") for s in said]
    return " or ".join(dict.fromkeys(said))


def described(kind: Any) -> str:
    """A type hint as a person would write it: `whole number | none`, `"linear" | "cosine"`."""
    names = {int: "whole number", float: "number", str: "text", bool: "true | false", NoneType: "none", dict: "table"}
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " | ".join(described(k) for k in get_args(kind) if k is not NoneType)
    if origin is Literal:
        return " | ".join(map(str, get_args(kind)))
    if origin in (tuple, list) or kind in (tuple, list):
        inner = [a for a in get_args(kind) if a is not Ellipsis]
        return f"list of {described(inner[0])}" if inner else "list"
    if hasattr(kind, "__metadata__"):
        return described(get_args(kind)[0])
    return names.get(origin or kind, getattr(kind, "__name__", str(kind)))


def shown(value: Value) -> str:
    return repr(value.raw) if value.flag else json.dumps(value.raw, ensure_ascii=False, default=str)
