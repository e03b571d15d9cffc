"""`fw plan`: what a run will need, from the same file and flags as `fw train`, before anything is loaded."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import Parameter

from featherweight.cli.amount import bytes_of
from featherweight.cli.config import checked, columns, overridden, several, together
from featherweight.cli.flags import read_flags
from featherweight.cli.nouns import noun
from featherweight.cli.nouns import placed as said
from featherweight.cli.recipes import recipe
from featherweight.cli.run_recipe import with_recipe
from featherweight.cli.schema import OWN, Key, methods, run_keys, tasks
from featherweight.cli.screen import Shown
from featherweight.cli.toml_file import read_toml
from featherweight.cli.value import Value
from featherweight.core.errors import InputError, Problem, raise_all

MORE = (
    Key("fit", str, None, "List what fits into this much memory, best first: 6GB, 512MB."),
    Key("devices", int, 8, "Devices to share the work, for the table of placements."),
    Key("probe", bool, False, "Run three steps on random weights and tell their time."),
    Key("picture", str, None, "Draw the memory into this file: .png or .svg."),
)
USAGE = """\
Usage: fw plan [MODEL | RUN.TOML] [--KEY VALUE ...]

What a run needs before it runs: parameters, memory, disk and work, from the config alone.
Takes every key of fw train, and these:
"""
EXAMPLES = """\

  fw plan MODEL --method lora --quantize nf4 --batch 4 --length 1024
  fw plan run.toml --probe
  fw plan MODEL --fit 6GB
  fw plan --from ADAPTER
"""


def command(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> Shown:
    """What a run needs, before it runs."""
    if not words or "--help" in words or "-h" in words:
        more = tuple(f"  --{k.name:<10} {k.about}" for k in MORE)
        return Shown({"keys": {k.name: k.about for k in MORE}}, (USAGE, *more, EXAMPLES))
    given, problems, values = read(words)
    method, task = noun("method", methods, values, problems), noun("task", tasks, values, problems)
    scheme = recipe("quantize", values, problems)
    if "model" not in given and "from" not in given:
        problems.append(Problem("a model is needed", "MODEL", fix="fw plan MODEL: a folder, a config.json, a hub name"))
    if "from" in values and method is not None:
        fix = "leave out --from or --method"
        problems.append(Problem("an adapter that is gone on with keeps its method", values["from"].where, fix=fix))
    seeds = several(given.get("seeds"), values, problems)
    limit = bytes_of(given.pop("fit", None), "--fit", problems)
    own = {k.name for k in (*OWN, *MORE)}
    settings = {k: v for k, v in given.items() if k not in own and "." not in k}
    problems += together(settings, values)
    raise_all(problems)
    from featherweight.train.repeats import placed

    beside: dict[str, Any] = {"over": columns(given, "over") or {}}
    if "from" in given:
        from featherweight.plan.begun import begun

        there = begun(given["from"], given.get("model"), None, scheme, cast(Any, task), given.get("name", "default"))
        method, scheme, task = there.method, there.scheme, there.task
        given = given | {"model": there.source}
        beside = {"head": there.head, "over": {**there.over, **beside["over"]}}
    data = given.get("data")
    rows = {"data": placed(data, seeds[0]) if seeds and data else data, "columns": columns(given)}
    beside |= {"template": given.get("template"), "recipe": given.get("recipe")}
    options = {"task": task, **rows, **beside, **settings}
    try:
        return fitting(given, limit, method, scheme, options) if limit else planned(given, method, scheme, options)
    except InputError as error:  # found while planning: said where the user wrote it
        origins = {k: v.where for k, v in values.items()}
        raise InputError(*(said(p, origins, "") for p in error.problems)) from error


def read(words: tuple[str, ...]) -> tuple[dict[str, Any], list[Problem], dict[str, Value]]:
    """The plain values, what is wrong so far, and all values. A first word that is no TOML file is the model."""
    keys: Mapping[str, Key] = run_keys() | {key.name: key for key in MORE}
    first, flags, problems = read_flags(words, keys)
    listed: list[Value] = []
    if first is not None and first.suffix == ".toml":
        try:
            listed = read_toml(first)
        except InputError as error:
            problems += error.problems
    elif first is not None:
        flags = [Value("model", str(first), "MODEL", flag=True), *flags]
    values = with_recipe(overridden(listed, flags), problems)
    return checked(values, keys, problems), problems, values


def planned(given: Mapping[str, Any], method: Any, scheme: Any, options: dict[str, Any]) -> Shown:
    from featherweight.methods import LoRA
    from featherweight.plan import plan
    from featherweight.plan.show import picture, screen

    found = plan(given["model"], method or LoRA(), scheme, probe=given.get("probe", False), **options)
    devices = given.get("devices", 8)
    pieces: list[Any] = [partial(screen, found, devices=devices)]
    if given.get("picture"):
        pieces.append(f"picture: {picture([(found.model, found)], Path(given['picture']))}")
    return Shown(found.to_dict() | {"placements": placements(found, devices)}, tuple(pieces))


def placements(found: Any, devices: int) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from featherweight.plan import placement

    return [asdict(p) for p in placement.placements(found, devices)]


def fitting(given: Mapping[str, Any], limit: int, method: Any, scheme: Any, options: dict[str, Any]) -> Shown:
    from featherweight.plan.fit import fit
    from featherweight.plan.show import options as table

    schemes = None if scheme is None else [None if scheme == "none" else scheme]
    found = fit(given["model"], limit, [method] if method else (), schemes, **options)
    data = {"limit": limit, "options": [
        o.plan.to_dict() | {"checkpointing": o.checkpointing, "accumulate": o.accumulate} for o in found
    ]}  # fmt: skip
    return Shown(data, (partial(table, found, limit),), code=0 if found else 1)
