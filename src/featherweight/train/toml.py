"""A small TOML writer for run.toml: strings, numbers, booleans, lists, tables (tomllib only reads)."""

import re
from collections.abc import Mapping
from typing import Any

BARE = re.compile(r"[A-Za-z0-9_-]+")
ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def dumps(form: Mapping[str, Any]) -> str:
    """The document; None is left out (TOML has none). Raises TypeError for a value that TOML cannot hold."""
    return "\n".join(lines(form, ())) + "\n"


def lines(form: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Values first, then tables, as TOML demands."""
    kept = {k: v for k, v in form.items() if v is not None}
    out = [f"{key(k)} = {value(v)}" for k, v in kept.items() if not isinstance(v, Mapping)]
    for name, table in kept.items():
        if isinstance(table, Mapping):
            here = (*path, name)
            out += ["", f"[{'.'.join(map(key, here))}]", *lines(table, here)]
    return out


def key(name: str) -> str:
    return name if BARE.fullmatch(name) else string(name)


def value(v: Any) -> str:
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, str):
        return string(v)
    if isinstance(v, int):
        return str(v)
    if isinstance(v, float):
        return repr(v)  # inf and nan are TOML too
    if isinstance(v, list | tuple):
        return f"[{', '.join(map(value, v))}]"
    if isinstance(v, Mapping):
        return f"{{{', '.join(f'{key(k)} = {value(w)}' for k, w in v.items() if w is not None)}}}"
    raise TypeError(f"{v!r} has no TOML form")


def string(text: str) -> str:
    escaped = "".join(ESCAPES.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in text)
    return f'"{escaped}"'
