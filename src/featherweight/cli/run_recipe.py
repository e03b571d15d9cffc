"""`--recipe tfew`: what a recipe says, as values below those of the file and the flags."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featherweight.cli.value import Value
from featherweight.core.errors import InputError, Problem

if TYPE_CHECKING:
    from featherweight.train.recipes import RunRecipe


def with_recipe(values: Mapping[str, Value], problems: list[Problem]) -> dict[str, Value]:
    """All values: those that are given, and the recipe's where none is."""
    named = values.get("recipe")
    if named is None:
        return dict(values)
    from featherweight.cli.config import overridden
    from featherweight.train.recipes import recipe_of

    try:
        recipe = recipe_of(str(named.raw))
        assert recipe is not None
        task = task_type(recipe, values)
    except InputError as error:
        places = {"recipe": named.where, "task.type": named.where}
        problems += [Problem(p.what, places.get(p.where, p.where), p.expected, p.got, p.fix) for p in error.problems]
        return dict(values)
    settings = {k: v for k, v in recipe.under(dict.fromkeys(values)).items() if k not in values}
    where = f"recipe {named.raw}"
    below = [Value(k, v, where) for k, v in {**settings, **method(recipe, values), **task}.items()]
    return overridden(below, values.values())


def method(recipe: "RunRecipe", values: Mapping[str, Value]) -> dict[str, Any]:
    """The recipe's method; an adapter that is gone on with keeps its own."""
    return {} if "from" in values else {f"method.{k}": v for k, v in recipe.method.to_dict().items()}


def task_type(recipe: "RunRecipe", values: Mapping[str, Value]) -> dict[str, Any]:
    """Which task `--task.unlikelihood 0` is an option of: the recipe's for this model."""
    if "task.type" in values or not any(k.startswith("task.") for k in values):
        return {}
    from featherweight.train.setup import config

    place = values.get("model")
    return {"task.type": recipe.task(None if place is None else config(str(place.raw))).to_dict()["type"]}
