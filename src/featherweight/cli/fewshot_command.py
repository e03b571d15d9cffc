"""`fw fewshot SUITE MODEL DIR`: every task of a suite, trained and scored alike, as one table."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.config import checked, overridden, several, together
from featherweight.cli.fewshot_screen import help_screen, report
from featherweight.cli.flags import read_flags
from featherweight.cli.nouns import noun, placed
from featherweight.cli.recipes import recipe
from featherweight.cli.run_recipe import with_recipe
from featherweight.cli.schema import OWN, Key, methods, noun_keys, run_keys, tasks
from featherweight.cli.screen import Shown, told
from featherweight.cli.value import Value
from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all

PLACES = ("SUITE", "MODEL", "DIR")
MORE = (
    Key("tasks", tuple[str, ...] | str, None, "Some of the suite's tasks: rte,cb (default: all that are there)."),
    Key("rows", int, None, "At most so many rows to answer for a task, drawn once (default: all)."),
    Key("submit", str, None, "Answer the unlabelled rows of this file of each task too, for RAFT's leaderboard."),
)
NOT_HERE = ("data", "columns", "template", "seed", "name", "limit", "over")  # the suite decides them


def command(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> Shown:
    """Train and score a model on every task of a few-shot suite."""
    if not words or "--help" in words or "-h" in words:
        return help_screen(MORE)
    from featherweight.fewshot import Suite, fewshot

    head = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    problems: list[Problem] = []
    suite, model, folder = positions(words[:head], Suite.known, problems)
    fields = noun_keys(Suite.known[suite]) if suite else {}
    keys = {k: v for k, v in run_keys().items() if k not in (*NOT_HERE, "model")} | {k.name: k for k in MORE} | fields
    _, flags, wrong = read_flags(words[head:], run_keys() | keys)
    problems += [Problem("not for a suite", f.where, fix="the suite decides it") for f in flags if f.key in NOT_HERE]
    flags = [flag for flag in flags if flag.key not in NOT_HERE]
    values = with_recipe(default_recipe(overridden([], flags), model), problems)
    given = checked({k: v for k, v in values.items() if k != "model"}, keys, problems)
    call = options(given, values, fields, problems)
    raise_all([*wrong, *problems])
    try:
        found = fewshot(model, Suite.known[suite](**{k: given[k] for k in fields if k in given}), folder,  # type: ignore[arg-type]
                        output=given.get("output") or f"out/{suite}", say=told, **call)  # fmt: skip
    except InputError as error:
        origins = {k: v.where for k, v in values.items()}
        raise InputError(*(placed(p, origins, "") for p in error.problems)) from error
    return report(suite, found)


def positions(words: Sequence[str], suites: Mapping[str, Any], problems: list[Problem]) -> tuple[str, str, str]:
    """Suite, model and folder; what is missing, too much or unknown becomes problems."""
    fix = f"fw fewshot {' '.join(PLACES)}"
    problems += [Problem("is needed", place, fix=fix) for place in PLACES[len(words) :]]
    problems += [Problem("a word too many", got=repr(word), fix=fix) for word in words[len(PLACES) :]]
    suite, model, folder = (*words[:3], "", "", "")[:3]
    if suite and suite.lower() not in suites:
        problems.append(Problem("unknown suite", "SUITE", got=repr(suite), fix=did_you_mean(suite.lower(), suites)))
    return suite.lower() if suite.lower() in suites else "", model, folder


def default_recipe(values: Mapping[str, Value], model: str) -> dict[str, Value]:
    """T-Few's recipe where no other is named; `none` is none."""
    named = values.get("recipe", Value("recipe", "tfew", "recipe"))
    rest = {k: v for k, v in values.items() if k != "recipe"} | {"model": Value("model", model, "MODEL")}
    return rest if str(named.raw).lower() == "none" else {"recipe": named, **rest}


def options(given: dict[str, Any], values: dict[str, Value], fields: Mapping[str, Any], problems: list[Problem]
            ) -> dict[str, Any]:  # fmt: skip
    """The keywords of `fw.fewshot`."""
    method, task = noun("method", methods, values, problems), noun("task", tasks, values, problems)
    quantize = recipe("quantize", values, problems)
    own = {k.name for k in (*OWN, *MORE)} | set(fields)
    settings = {k: v for k, v in given.items() if k not in own and "." not in k}
    problems += together(settings, values)
    if method is None and not {"recipe", "from"} & given.keys():
        method = methods()["lora"]()
    picked = given.get("tasks") or ()
    return {
        "seeds": several(given.get("seeds"), values, problems) or (0,), "rows": given.get("rows"),
        "tasks": (picked,) if isinstance(picked, str) else picked, "submit": given.get("submit"),
        "start": given.get("from"), "recipe": given.get("recipe"), "method": method, "task": task,
        "quantize": quantize, **settings,
    }  # fmt: skip
