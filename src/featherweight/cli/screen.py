"""What is printed, and where: results on stdout, everything else on stderr, in whatever encoding the terminal has."""

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem

if TYPE_CHECKING:
    from rich.console import Console

    from featherweight.cli.parse import Call

MOST = 30  # problems shown on a screen


@dataclass(frozen=True, slots=True)
class Shown:
    """A command's result: the object that --json prints, what a person sees, and the exit code."""

    data: dict[str, Any] = field(default_factory=dict)
    screen: tuple[Any, ...] = ()  # strings, rich renderables, functions of a console: in order
    code: int = 0

    def print(self) -> None:
        out = console()
        for piece in self.screen:
            if callable(piece):
                piece(out)
                continue
            out.print(piece, markup=False, highlight=False, soft_wrap=isinstance(piece, str))


def console(stderr: bool = False) -> "Console":
    """A rich console on the present stdout or stderr; box drawing falls back to ASCII where it must."""
    from rich.console import Console

    return Console(stderr=stderr, safe_box=True, emoji=False)


def plain_streams() -> None:
    """Characters that the terminal cannot show become `?`, never an exception (LC_ALL=C, cp936)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def told(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


def print_json(data: dict[str, Any]) -> None:
    """One line of JSON. ASCII alone, so that no encoding can damage it; nan and infinities are written as strings."""
    print(json.dumps(jsonable(data), ensure_ascii=True, allow_nan=False), flush=True)


def jsonable(value: Any) -> Any:
    """Plain JSON values of whatever the API returned: paths, tuples, numpy scalars and 0-d tensors included."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if hasattr(value, "item"):
        return jsonable(value.item())
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_dict"):  # a noun
        return jsonable(value.to_dict())
    raise TypeError(f"no JSON form for {type(value).__name__}")


def failure(call: "Call", error: BaseException, code: int) -> None:
    """Say what went wrong: on stderr in words, and with --json as the one object on stdout as well."""
    found = problems(error, call)
    for one in found[:MOST]:
        print(f"fw: {one}" if not one.where else str(one), file=sys.stderr)
    if len(found) > MOST:
        print(f"… and {len(found) - MOST:,} more (all of them with --json)", file=sys.stderr)
    if call.json:
        print_json({"command": call.name, "exit": code, "problems": [asdict(p) for p in found]})


def problems(error: BaseException, call: "Call") -> list[Problem]:
    """The problems behind an exception, one by one."""
    if isinstance(error, InputError):
        return list(error.problems)
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Terminated":
        return [Problem("interrupted")]
    if isinstance(error, OSError) and error.strerror:
        return [Problem(error.strerror, str(error.filename or ""))]
    from featherweight.core.errors import FeatherweightError

    if isinstance(error, FeatherweightError):
        return [Problem(str(error))]
    hint = "" if call.debug else "run it again with --debug for the traceback"
    return [Problem(f"{type(error).__name__}: {error}", fix=hint)]
