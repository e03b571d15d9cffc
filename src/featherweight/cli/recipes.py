"""A scheme and where it goes, from flags or a file: `--scheme nf4 --scheme.double --skip down`, `[quantize]`.

Commands whose other flags are plain take the flags of one scheme as one word of JSON: `gathered` makes it, before the
words are parsed; `read` undoes it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from featherweight.cli.flags import normal, one
from featherweight.cli.nouns import noun
from featherweight.cli.schema import Key, schemes
from featherweight.cli.value import Value, fitted
from featherweight.core.errors import Problem

FAMILIES = ("scheme", "quantize")
PLACES = ("targets", "skip")  # beside the fields of the scheme


def recipe(family: str, values: Mapping[str, Value], problems: list[Problem]) -> Any:
    """The Recipe that the values of a family describe; "none" where they say so, None where they say nothing."""
    mine = {k: v for k, v in values.items() if k.startswith(f"{family}.")}
    kind = mine.get(f"{family}.type")
    if kind is not None and str(kind.raw).lower() == "none":
        others = [v.where for k, v in mine.items() if k != f"{family}.type"]
        problems += [Problem("an option of no number format", where, fix="leave it out") for where in others]
        return "none"
    places: dict[str, Any] = {}
    for name in PLACES:
        value = mine.pop(f"{family}.{name}", None)
        if value is not None:
            got, wrong = fitted(value, str | tuple[str, ...])
            problems += [wrong] if wrong else []
            places[name] = got
    made = noun(family, schemes, mine, problems, word="number format")
    if made is None and places and not mine:
        problems.append(Problem("which number format?", family, fix=f"--{family} nf4, or another of fw quantize"))
    if made is None:
        return None
    from featherweight.quant.recipe import Recipe

    return Recipe(made, **places)  # type: ignore[arg-type]


def gathered(tokens: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """`--scheme nf4 --scheme.block 32` as one flag: `--scheme={"scheme.type": ["nf4", "--scheme"], …}`."""
    problems: list[Problem] = []
    kept: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    rest = list(tokens)
    while rest:
        word = rest.pop(0)
        key = normal(word[2:].partition("=")[0])
        family = key.partition(".")[0]
        if not word.startswith("--") or family not in FAMILIES:
            kept.append(word)
            continue
        value = one(word, rest, {name: Key(name, str) for name in FAMILIES})
        if isinstance(value, Problem):
            problems.append(value)
            continue
        name = f"{key}.type" if key == family else key
        found.setdefault(family, {})[name] = [value.raw, value.where]
    return kept + [f"--{family}={json.dumps(values)}" for family, values in found.items()], problems


def read(text: str | None, family: str, problems: list[Problem]) -> Any:
    """What `gathered` made of a family's flags, as `recipe` gives it."""
    values = {} if text is None else json.loads(text)
    return recipe(family, {k: Value(k, raw, where, flag=True) for k, (raw, where) in values.items()}, problems)
