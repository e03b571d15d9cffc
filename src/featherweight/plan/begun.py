"""What a run that goes on from an adapter begins with: base, method, number format and task, as they are on record."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherweight.checkpoint.load import Stored, meant, read
from featherweight.core.errors import InputError, Problem
from featherweight.core.method import Method
from featherweight.interop.load import find_base, in_codes, task_of
from featherweight.interop.transformers import dtype_of
from featherweight.plan import shell
from featherweight.plan.facts import task_of as usual
from featherweight.tasks import Task


@dataclass(frozen=True)
class Begun:
    """As `fw.train(start=...)` has it; `scheme` None: the base stays as it is. `over`: the folders, beside its own, of
    the adapters that it works over."""

    source: Any
    method: Method
    head: bool | str
    scheme: Any
    task: Task | None
    over: Mapping[str, Path]


def begun(
    start: str | os.PathLike[str], source: Any = None, method: Method | None = None, scheme: Any = None,
    task: Task | None = None, name: str = "default",
) -> Begun:  # fmt: skip
    """The adapter in the folder `start`; `source`, `scheme` and `task` where given come before what is on record.

    Raises InputError for a method beside it, a damaged folder, and a base that is not found.
    """
    if method is not None:
        fix = "leave out start or method"
        raise InputError(Problem("an adapter that is gone on with keeps its method", "method", fix=fix))
    stored = read(start, name)
    place = find_base(stored) if source is None else source
    wanted = task or task_of(stored)
    recorded = stored.record.quantize if stored.record is not None else None
    if scheme is None and recorded and not (isinstance(place, str | os.PathLike) and in_codes(os.fspath(place))):
        scheme = recorded
    found, head = method_of(stored, place, wanted)
    return Begun(place, found, head, scheme, wanted, {n: stored.folder / n for n in found.needs})


def method_of(stored: Stored, source: Any, task: Task | None) -> tuple[Method, bool]:
    """The method on record and whether a head goes with it; of a file of another library it is read out of its config
    and the model's shape."""
    if stored.record is not None:
        return Method.from_dict(stored.record.method, where=str(stored.folder)), stored.record.head
    config = shell.config_of(source)
    kind = task or usual(config)
    return meant(shell.built(config, kind.auto, dtype_of(None), kind.model_options()), stored)
