"""A run's configuration: the file first, flags over it, every value checked, every problem at once with its place."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherweight.cli.amount import bytes_of
from featherweight.cli.flags import normal, read_flags
from featherweight.cli.nouns import noun, placed
from featherweight.cli.recipes import recipe
from featherweight.cli.run_recipe import with_recipe
from featherweight.cli.schema import OWN, Key, methods, run_keys, tasks
from featherweight.cli.toml_file import TABLES, read_toml
from featherweight.cli.value import Value, fitted
from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all

PAIRS = ("columns", "over")  # keys whose value is pairs, ours=theirs, or a table of them
NOUNS = ("method", "task", "quantize")  # keys whose value names a noun and whose entries are its fields


@dataclass(frozen=True)
class RunConfig:
    """What `fw train` was asked to do. `origins` tells where each value came from, for errors found later."""

    model: str | None
    data: Any
    output: str
    task: Any = None
    method: Any = None
    quantize: Any = None  # a Recipe, "none", or None where nothing is said
    name: str = "default"
    start: str | None = None  # --from: the adapter to go on with
    columns: dict[str, str] | None = None
    over: dict[str, str] | None = None  # adapters that the method works over
    recipe: str | None = None
    template: str | None = None
    seeds: tuple[int, ...] = ()
    limit: int | None = None  # bytes that the plan of the run may need
    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def read_config(tokens: Sequence[str]) -> RunConfig:
    """The configuration of a command line. Raises one InputError over everything that is wrong with it."""
    keys = run_keys()
    file, flags, problems = read_flags(tokens, keys)
    listed: list[Value] = []
    if file is not None:
        try:
            listed = read_toml(file)
        except InputError as error:
            problems += error.problems
    values = with_recipe(overridden(listed, flags), problems)
    made = checked(values, keys, problems)
    method = noun("method", methods, values, problems)
    task = noun("task", tasks, values, problems)
    quantize = recipe("quantize", values, problems)
    needed(values, problems)
    settings = {k: v for k, v in made.items() if k not in {own.name for own in OWN} and "." not in k}
    problems += together(settings, values)
    seeds = several(made.get("seeds"), values, problems)
    limit = bytes_of(made.get("limit"), values["limit"].where if "limit" in values else "", problems)
    raise_all(problems)
    return RunConfig(
        model=made.get("model"), data=made.get("data"), output=made.get("output") or default_output(made["data"]),
        task=task, method=method, quantize=quantize, name=made.get("name", "default"), start=made.get("from"),
        columns=columns(made), over=columns(made, "over"), recipe=made.get("recipe"), template=made.get("template"),
        seeds=seeds, limit=limit, settings=settings, origins={k: v.where for k, v in values.items()},
    )  # fmt: skip


def overridden(listed: Iterable[Value], flags: Iterable[Value], nouns: Sequence[str] = NOUNS) -> dict[str, Value]:
    """Flags over the file's values. A flag that names another method (task) drops the file's options of the old one."""
    values = {normal_key(v, nouns): v for v in listed}
    given = {normal_key(v, nouns): v for v in flags}
    for family in nouns:
        kind, was = given.get(f"{family}.type"), values.get(f"{family}.type")
        if kind is not None and (was is None or str(was.raw).lower() != str(kind.raw).lower()):
            values = {k: v for k, v in values.items() if not k.startswith(f"{family}.")}
    return values | given


def normal_key(value: Value, nouns: Sequence[str] = NOUNS) -> str:
    key = normal(value.key)
    return f"{key}.type" if key in nouns else key


def checked(
    values: Mapping[str, Value], keys: Mapping[str, Key], problems: list[Problem], tables: Sequence[str] = TABLES
) -> dict[str, Any]:
    """The plain keys, each as its type; unknown keys and wrong values become problems."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        if "." in key and key.split(".")[0] in tables:
            if key.startswith(tuple(f"{name}." for name in PAIRS)):
                made[key] = str(value.raw)
            continue
        if key not in keys:
            problems.append(
                Problem("unknown key", value.where, fix=did_you_mean(spelt(key, value), names(keys, value)))
            )
            continue
        got, wrong = fitted(value, keys[key].kind)
        if wrong:
            problems.append(wrong)
        else:
            made[key] = got
    return made


def names(keys: Mapping[str, Key], value: Value) -> list[str]:
    """The known keys, spelt as the user would spell them: with dashes after --."""
    return [f"--{k.replace('_', '-')}" if value.flag else k for k in keys]


def spelt(key: str, value: Value) -> str:
    return f"--{key.replace('_', '-')}" if value.flag else key


def needed(values: Mapping[str, Value], problems: list[Problem]) -> None:
    """A run needs a model (its own, or an adapter's) and data."""
    meant = " ".join(p.fix for p in problems)  # a misspelt --modle is one mistake, not two
    if "model" not in values and "from" not in values and "model'?" not in meant:
        problems.append(Problem("a model is needed", "model", fix='--model DIR, or model = "DIR" in run.toml'))
    if "data" not in values and "data'?" not in meant:
        problems.append(Problem("data is needed", "data", fix='--data FILE, or data = "FILE" in run.toml'))
    if "from" in values and any(k.startswith("method.") for k in values):
        where = next(v.where for k, v in values.items() if k.startswith("method."))
        problems.append(
            Problem("an adapter that is gone on with keeps its method", where, fix="leave out --from or --method")
        )


def together(settings: dict[str, Any], values: Mapping[str, Value]) -> list[Problem]:
    """What Settings has against these values as a whole."""
    from featherweight.train.settings import settings as validated

    try:
        validated(settings)
    except InputError as error:
        return [placed(p, {k: v.where for k, v in values.items()}, "settings") for p in error.problems]
    return []


def columns(made: Mapping[str, Any], key: str = "columns") -> dict[str, str] | None:
    """text=review,label=stars, or the table of the file; flags for single columns go over it."""
    given = made.get(key) or {}
    if isinstance(given, str):
        given = read_columns(given, f"--{key}")
    return {**given, **{k.split(".", 1)[1]: v for k, v in made.items() if k.startswith(f"{key}.")}} or None


def read_columns(text: str, flag: str = "--columns") -> dict[str, str]:
    """`text=review,label=stars` as a mapping. Raises InputError where a pair has no =."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    raise_all(Problem("not a pair", flag, "ours=theirs", repr("".join(p))) for p in pairs if not (p[1] and p[2]))
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def several(given: Any, values: Mapping[str, Value], problems: list[Problem]) -> tuple[int, ...]:
    """The seeds of a run for each: one or more, each once."""
    seeds = () if given is None else tuple(dict.fromkeys(given if isinstance(given, tuple) else (given,)))
    if any(seed < 0 for seed in seeds):
        problems.append(Problem("wrong value", values["seeds"].where, "whole numbers from 0", str(seeds)))
    if seeds and "seed" in values:
        problems.append(Problem("a seed beside the seeds", values["seed"].where, fix="leave one of them out"))
    return seeds


def default_output(data: Any) -> str:
    """out/<name of the data>."""
    one = data if isinstance(data, str) else next(iter(data.values() if isinstance(data, dict) else data))
    return str(Path("out") / Path(str(one).split(",")[0].split(":")[0]).stem.replace("{seed}", "seeds"))
