"""What a config and a data set say before any model is traced: the task, the rows of a step, what an epoch will do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from types import SimpleNamespace
from typing import Any

from torch import nn

from featherweight.core.errors import InputError, Problem
from featherweight.core.room import taken
from featherweight.data.collate import collate
from featherweight.data.types import Encoded
from featherweight.evaluate.setting import labeled
from featherweight.tasks import CausalLM, Classification, Seq2Seq, Task
from featherweight.tasks.check import check_length, position_limit
from featherweight.train import setup
from featherweight.train.feed import units
from featherweight.train.recipes import RunRecipe
from featherweight.train.settings import Settings

LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")
DEFAULT_LENGTH = 512  # tokens of a row where neither length nor the architecture says less


def task_of(config: Any) -> Task:
    """The task a config was made for: by its architectures, else by what its kind of model is trained for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    name = next(iter(config.architectures or ()), "")
    if name.endswith("ForSequenceClassification") or (not name.endswith("LM") and config.model_type in MASKED):
        return Seq2Seq() if config.is_encoder_decoder else Classification()
    return Seq2Seq() if config.is_encoder_decoder else CausalLM()


def length_of(config: Any, asked: int | None, default: int) -> int:
    """Tokens of a row. Raises InputError for more than the model has positions."""
    limit = next((int(v) for n in LIMITS if (v := getattr(config, n, None))), None)
    if config.is_encoder_decoder and config.model_type in ("t5", "mt5", "umt5"):
        limit = None  # relative positions: no limit
    if asked is not None and limit is not None and asked > limit:
        raise InputError(Problem("more tokens than the model has positions", "length", f"at most {limit:,}",
                                 f"{asked:,}", "shorten the rows, or plan another model"))  # fmt: skip
    return asked or min(default, limit or default)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is planned, whatever the method and the number format: the task as training would have it, rows of at most
    `length` tokens, and those of the data (None: none are given) as the task encodes them; `encode` does it again at
    another length."""

    config: Any
    task: Task
    length: int
    rows: list[Encoded] | None = None
    encode: Callable[[int | None], list[Encoded]] | None = None
    head: bool | str = "auto"  # whether the task's head trains along, as `attach` has it
    over: Mapping[str, Any] | None = None  # folders of the adapters that the method works over

    def beside(self, model: nn.Module, chosen: Settings) -> Subject:
        """With rows that leave the virtual tokens of a model their positions, as training cuts them. Raises InputError
        for a length that does not, and where nothing is left."""
        if not taken(model):
            return self
        limit = check_length(model, chosen.length)
        if limit is None or self.length <= limit:
            return self
        rows = None if self.encode is None else self.encode(limit)
        return replace(self, length=limit, rows=rows)

    def batch(self, chosen: Settings) -> dict[str, Any]:
        """The tensors of the heaviest step: the longest rows of the data, else rows at full length."""
        rows = heaviest(self.rows, chosen.batch) if self.rows else [self.task.largest(self.length)] * chosen.batch
        return collate(rows, 0).tensors

    def notes(self, chosen: Settings) -> tuple[str, ...]:
        """What the figures leave out or take for granted."""
        found = [
            "tensors only: the interpreter with its libraries is some 350 MB more, a CUDA context about 500 MB",
            f"the {chosen.batch} longest rows of the data in one piece" if self.rows else self.made_up(chosen),
        ]
        if chosen.accumulate > 1:
            found.append(f"accumulate={chosen.accumulate}: each micro-batch is that much smaller than what is shown")
        return tuple(found)

    def made_up(self, chosen: Settings) -> str:
        """How full the rows are where there are no data."""
        row = self.task.largest(self.length)
        inputs, beside = len((row.more or {}).get("windows", ())), ""
        if inputs > 1:
            beside = f", {inputs} inputs of {self.length} tokens in each"
        elif row.choices:
            beside = f", {len(row.choices)} answers or passages of {len(row.choices[0])} tokens with each"
        elif self.config.is_encoder_decoder and self.task.generates:
            beside = f", {len(row.labels)} tokens to write for each"
        return f"all {chosen.batch} rows at full length in one piece{beside}; whatever may carry loss does"


def subject(config: Any, source: Any, chosen: Settings, *, task: Task | None = None, recipe: RunRecipe | None = None,
            data: Any = None, columns: Any = None, template: str | None = None, head: bool | str = "auto",
            over: Mapping[str, Any] | None = None) -> Subject:  # fmt: skip
    """Read what is given. Raises InputError over bad rows, and where data are given to a source without a tokenizer."""
    wanted = task or (recipe.task(config) if recipe else None) or getattr(source, "task", None)
    if data is None:
        if template is not None:
            raise InputError(Problem("templates word the rows of data", "template", fix="give data, or leave it out"))
        length = length_of(config, chosen.length, DEFAULT_LENGTH)
        return Subject(config, labeled(wanted or task_of(config), config), length, head=head, over=over)
    worded = setup.worded(data, template, columns, chosen.seed)
    stuff = setup.material(worded, wanted, SimpleNamespace(config=config), columns, lambda _: None)
    limit = chosen.length and length_of(config, chosen.length, DEFAULT_LENGTH)
    encode = partial(encoded, stuff, source)
    rows = encode(limit or positions(config, stuff.task))
    return Subject(config, stuff.task, max(len(row.input_ids) for row in rows), rows, encode, head, over)


def encoded(stuff: setup.Material, source: Any, length: int | None) -> list[Encoded]:
    """The training rows that carry loss, as the task encodes them. Raises InputError where none does, and where the
    source has no tokenizer."""
    from featherweight.interop.transformers import load_tokenizer

    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None and not isinstance(source, str | os.PathLike):
        fix = "plan a model's folder, or leave data out"
        raise InputError(Problem("no tokenizer to read the data with", "data", fix=fix))
    rows = stuff.task.encode_all(stuff.train, tokenizer or load_tokenizer(source), length)
    if not any(units(row) for row in rows):
        fix = "look at the rows with fw data, or allow more tokens with length"
        raise InputError(Problem("no row trains anything", rows[0].where, stuff.task.trains, repr(stuff.task), fix))
    return [row for row in rows if units(row)]


def positions(config: Any, task: Task) -> int | None:
    """What rows are cut to in training where nothing is said."""
    from featherweight.interop.transformers import dtype_of
    from featherweight.plan import shell

    return position_limit(shell.built(config, task.auto, dtype_of(None), task.model_options()))


def size(row: Encoded) -> int:
    """Tokens of a row: its text and all its choices."""
    return len(row.input_ids) + sum(map(len, row.choices or ()))


def heaviest(rows: Sequence[Encoded], count: int) -> list[Encoded]:
    """So many of the longest rows; where there are fewer, some twice."""
    ordered = sorted(rows, key=size, reverse=True)
    return [replace(ordered[i % len(ordered)]) for i in range(count)]


def of_data(rows: Sequence[Encoded], chosen: Settings) -> dict[str, Any]:
    """Rows, cut rows, tokens, units and steps of an epoch."""
    sizes = [size(row) for row in rows]
    return {
        "rows": len(rows), "cut_rows": sum(row.truncated > 0 for row in rows),
        "cut_tokens": sum(row.truncated for row in rows), "longest": max(sizes),
        "tokens_per_epoch": sum(sizes), "units_per_epoch": sum(units(row) for row in rows),
        "steps_per_epoch": ceil(len(rows) / chosen.batch),
    }  # fmt: skip
