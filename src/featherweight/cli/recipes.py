"""A scheme and where it goes, from flags or a file: `--scheme nf4 --scheme.double --skip down`, `[quantize]`."""

from collections.abc import Mapping
from typing import Any

from featherweight.cli.gathered import values_of
from featherweight.cli.nouns import noun
from featherweight.cli.schema import schemes
from featherweight.cli.value import Value, fitted
from featherweight.core.errors import Problem

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


def read(text: str | None, family: str, problems: list[Problem]) -> Any:
    """What `gathered` made of a family's flags, as `recipe` gives it."""
    return recipe(family, values_of(family, text), problems)
