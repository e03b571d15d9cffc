"""run.toml: what a run was asked to do with every default made explicit, so that the file alone runs it again."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.core.errors import InputError, Problem
from featherweight.data.shape import pairs
from featherweight.quant.recipe import Recipe
from featherweight.train.recipes import RunRecipe
from featherweight.train.settings import Settings
from featherweight.train.setup import base_name
from featherweight.train.step import Trained

Form = dict[str, Any]
MEMORY = "rows in memory"


def origin(model: Any, data: Any, output: Path | None, name: str, columns: Any, start: Any,
           recipe: RunRecipe | None = None, template: str | None = None, over: Any = None) -> Form:  # fmt: skip
    """What was given, by the names of the command line; None where it has no name there (a live model)."""
    return {
        "model": pathlike(model), "from": pathlike(start), "data": recorded(data), "output": pathlike(output),
        "name": name, "columns": pairs(columns) or None,
        "over": {each: os.fspath(folder) for each, folder in (over or {}).items()} or None,
        "recipe": None if recipe is None else type(recipe).__name__.lower(), "template": template,
    }  # fmt: skip


def spelt(quantize: Any) -> Form | str | None:
    """How the base is quantized, as a file spells it: a table, or "none". Raises InputError for several formats."""
    found = Recipe.of(quantize)
    if len(found) > 1:
        got = ", ".join(repr(recipe.scheme) for recipe in found)
        fix = "write the base with fw.quantize and save_pretrained, and train on that folder"
        raise InputError(Problem("a run has one number format", "quantize", got=got, fix=fix))
    return found[0].to_dict() if found else quantize


def pathlike(given: Any) -> str | None:
    return os.fspath(given) if isinstance(given, str | os.PathLike) else None


def recorded(data: Any) -> Any:
    """Paths, lists of paths and tables of paths (splits, weights) as they are; rows in memory have no name."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    if isinstance(data, Mapping) and all(isinstance(v, int | float) or recorded(v) != MEMORY for v in data.values()):
        return {os.fspath(k): v if isinstance(v, int | float) else recorded(v) for k, v in data.items()}
    if isinstance(data, Sequence) and data and all(isinstance(part, str | os.PathLike) for part in data):
        return [os.fspath(part) for part in data]
    return MEMORY


def document(model: nn.Module, given: Form, filled: Form, identity: Form) -> Form:
    """The whole file. An adapter that is gone on with brings its own method."""
    head = given if given["model"] or given["from"] else {**given, "model": base_name(model)}
    head, tables = {k: v for k, v in head.items() if k != "quantize"}, {"quantize": given["quantize"]}
    method = {} if given["from"] else {"method": next(iter(identity["method"].values()))}
    return {**head, **filled, "task": identity["task"], **method, **tables}


def resolved(chosen: Settings, trained: Trained, length: int | None) -> Form:
    """The settings with every default made explicit; TOML has no null, so that what is turned off is "none"."""
    method = next(iter(trained.values()))[0]
    filled = chosen.model_dump(exclude={"resume"})
    if chosen.steps is None:
        filled["epochs"] = float(chosen.epochs or 3)
    off = {k: "none" for k, v in filled.items() if v is None and Settings.model_fields[k].default is not None}
    return {**filled, **off, "lr": chosen.lr or method.lr, "length": length}
