"""Rows without answers, from which a student can learn all the same: its teacher has answers.

texts without labels        of the shape of dev rows that have some; their labels train nothing (`Task.blank`)
prompts without answers     where a model writes every answer: an end of text stands for each, never looked at, so
                            that a row weighs one unit
"""

from dataclasses import replace
from typing import Any

from featherweight.data.load import Data
from featherweight.data.shape import shape_of
from featherweight.data.types import Rows
from featherweight.distill.recipes import Recipe

ANSWERS = {"completion": "completion", "instruction": "output"}  # shape of prompts -> the role of their answers


def answerable(data: Data, columns: Any, recipe: Recipe, tokenizer: Any) -> Data:
    """The data, in a form that training takes where the recipe needs no answers."""
    if data.shape.labelled:
        return data
    if data.shape.name in ("text", "pair") and data.valid:
        return replace(data, shape=replace(shape_of(data.valid, columns), labelled=False))
    role = ANSWERS.get(data.shape.name)
    if role is None or not recipe.answers:
        return data
    column = data.shape.columns.get(role, role)
    shape = replace(data.shape, columns={**data.shape.columns, role: column}, labelled=True)
    ended = [replace(row, fields={**row.fields, column: tokenizer.eos_token}) for row in data.train]
    return replace(data, train=Rows(ended), shape=shape)
