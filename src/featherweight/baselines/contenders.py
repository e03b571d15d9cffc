"""The contenders of a comparison, each a line over the same rows: a rule, prompts, a frozen encoder, adapters."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.baselines import flops
from featherweight.baselines.comparison import CONTEXT, FROZEN, RULE, TUNED, Line
from featherweight.baselines.forms import Forms
from featherweight.baselines.frozen import frozen
from featherweight.baselines.near import WORDS
from featherweight.baselines.prompts import answer, question
from featherweight.baselines.rule import TOKEN_BYTES
from featherweight.baselines.shots import SEPARATOR, in_context, written
from featherweight.core.count import trainable
from featherweight.core.errors import InputError, Problem
from featherweight.data.encode import ids_of
from featherweight.evaluate import run
from featherweight.evaluate.setting import lengths, task_of, tokenizer_of
from featherweight.plan.facts import size
from featherweight.quant.recipe import recipes
from featherweight.tasks import Embedding
from featherweight.tasks.check import check_length

if TYPE_CHECKING:
    from torch import nn

    from featherweight.data.types import Example
    from featherweight.tasks.task import Task


@dataclass(frozen=True)
class Answered:
    """A model's answers: the score of each row, FLOPs and tokens of a query, and how many rows were cut."""

    values: tuple[float, ...]
    query: float | None
    tokens: float
    cut: int

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"{self.cut} rows cut to the model's length",) if self.cut else ()


def answered(
    model: nn.Module, task: Task, forms: Forms, rows: Sequence[Example], batch: int, length: int | None,
    told: run.Told = run.silent,
) -> Answered:  # fmt: skip
    """Predict every row and count some. A quantized base is not counted: fused products over codes are not seen."""
    tokenizer = tokenizer_of(model)
    encoded = task.ask(rows, tokenizer, lengths(model, task, length))
    values = forms.values(task, rows, run.predictions(model, task, encoded, tokenizer, batch, told))
    query = flops.inference(model, task, encoded, tokenizer) if not recipes(model) else None
    cut = sum(row.truncated > 0 for row in encoded)
    return Answered(values, query, mean([size(row) for row in encoded]), cut)


def commonest(forms: Forms) -> list[Line]:
    """The most frequent answer of training, always; nothing for texts."""
    values = forms.commonest()
    return [] if values is None else [Line("most frequent", RULE, values)]


def prompted(model: nn.Module, task: Task, forms: Forms, shots: int, select: str, embedder: Any, batch: int,
             length: int | None, seed: int, layout: dict[str, Any], told: run.Told = run.silent) -> Line:  # fmt: skip
    """`shots` examples in front of each row. A text that is written ends where the next example would begin."""
    pool, rows = forms.of(task, "the prompts")
    task = ended(task, pool, layout.get("separator", SEPARATOR)) if shots else task
    made = in_context(model, rows, pool, shots, select=select, embedder=embedder, task=task, length=length, seed=seed,
                      **layout)  # fmt: skip
    found = answered(model, task, forms, made, batch, length, told)
    name = name_of(shots, select)
    notes = found.notes
    if any(made.dropped):
        notes += (f"{sum(made.dropped)} examples dropped in {sum(map(bool, made.dropped))} rows: no room",)
    prepared, query, disk = looked_up(embedder, pool, rows) if shots and select == "nearest" else (0.0, 0.0, 0)
    disk += kept(model, pool, shots, whole=select == "nearest")
    total = None if found.query is None else found.query + query
    return Line(name, CONTEXT, found.values, prepared, total, disk, 0, found.tokens, notes)


def name_of(shots: int, select: str) -> str:
    return f"{shots}-shot, {select}" if shots else "zero-shot"


def ended(task: Task, pool: Sequence[Example], separator: str) -> Task:
    """The task, its texts ending in front of what stands between examples, unless answers hold that themselves."""
    if not task.generates or not separator or any(e.messages or separator in (answer(e) or "") for e in pool):
        return task
    return replace(task, stop=separator)  # type: ignore[call-arg]


def bounded(task: Task, answers: Sequence[str], tokenizer: Any, most: int | None) -> Task:
    """The task, its texts no longer than `most` tokens; None: a quarter more than the longest of the answers."""
    if not task.generates:
        return task
    longest = max(map(len, ids_of(tokenizer, list(answers))))
    own = int(getattr(task, "max_new_tokens", 0))
    return replace(task, max_new_tokens=most or min(own, longest + max(longest // 4, 4)))  # type: ignore[call-arg]


def kept(model: nn.Module, pool: Sequence[Example], shots: int, whole: bool) -> int:
    """Bytes of the examples as token ids: as T-Few counts them one set of `shots`, or the whole pool to look up in."""
    if not shots:
        return 0
    sizes = [len(ids) for ids in ids_of(tokenizer_of(model), [written(shot) for shot in pool])]
    return TOKEN_BYTES * (sum(sizes) if whole else round(shots * mean(sizes)))


def looked_up(embedder: Any, pool: Sequence[Example], rows: Sequence[Example]) -> tuple[float, float, int]:
    """What retrieval adds: FLOPs to embed the pool once, FLOPs of a query (its embedding and the products), bytes of
    the pool's embeddings. Looking up by words counts as free."""
    if embedder == WORDS:
        return 0.0, 0.0, 0
    task, tokenizer = Embedding(), tokenizer_of(embedder)
    length, width = check_length(embedder, None), int(embedder.config.hidden_size)

    def one(examples: Sequence[Example]) -> float:
        texts = [replace(e, text=question(e), pair=None) for e in examples]
        return flops.inference(embedder, task, task.ask(texts, tokenizer, length), tokenizer)

    return one(pool) * len(pool), one(rows) + 2 * len(pool) * width, 4 * width * len(pool)


def regression(encoder: nn.Module, forms: Forms, batch: int, length: int | None, seed: int,
               told: run.Told = run.silent) -> Line:  # fmt: skip
    """Logistic regression on frozen embeddings."""
    model = frozen(encoder, list(forms.train), seed=seed, length=length)
    found = answered(model, model.task, forms, forms.of(model.task, "the regression")[1], batch, length, told)
    rows = model.task.ask(list(forms.train), model.tokenizer, check_length(model, length))
    training = flops.inference(model, model.task, rows, model.tokenizer) * len(rows) + model.work
    head = list(model.classifier.parameters())
    disk = sum(p.numel() * p.element_size() for p in head)
    notes = (f"C = {model.strength:g} by {model.chosen}", *found.notes)
    return Line("frozen + regression", FROZEN, found.values, training, found.query, disk,
                sum(p.numel() for p in head), found.tokens, notes)  # fmt: skip


def adapter(folder: str | os.PathLike[str], forms: Forms, test: Any, batch: int, length: int | None,
            base: Any = None, tokens: int | None = None, over: Mapping[str, Any] | None = None,
            told: run.Told = run.silent) -> Line:  # fmt: skip
    """A trained adapter on its base, and what its run.toml says of its training."""
    from featherweight.checkpoint.load import read
    from featherweight.interop.load import load_model, needs

    ran = record(Path(folder))
    unseen(ran, test, folder)
    mine = {name: over[name] for name in needs(read(folder)) if name in over} if over else {}
    model = load_model(folder, base=base, train=True, over=mine)
    task = task_of(model, None, forms.shape)
    task = bounded(task, forms.answers, tokenizer_of(model), tokens)
    train, rows = forms.of(task, str(folder))
    found = answered(model, task, forms, rows, batch, length or ran.get("length"), told)
    training, notes = trained(model, task, train, ran, Path(folder))
    disk = sum(p.stat().st_size for p in Path(folder).glob("*.safetensors"))
    return Line(f"tuned: {Path(folder).name}", TUNED, found.values, training, found.query, disk,
                trainable(model).trainable, found.tokens, (*notes, *found.notes))  # fmt: skip


def record(folder: Path) -> dict[str, Any]:
    """A run's run.toml, {} for an adapter that came without one."""
    file = folder / "run.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def unseen(ran: dict[str, Any], test: Any, folder: Any) -> None:
    """Raise InputError where the adapter was trained on the very file that it is to be compared on."""
    paths = [Path(p).resolve() for p in (ran.get("data"), test) if isinstance(p, str | os.PathLike)]
    if len(paths) == 2 and paths[0] == paths[1] and paths[0].is_file():
        raise InputError(Problem("the adapter was trained on these very rows", str(folder), "others", str(test)))


def trained(model: nn.Module, task: Task, rows: Sequence[Example], ran: dict[str, Any], folder: Path) -> tuple[
    float | None, tuple[str, ...]]:  # fmt: skip
    """FLOPs of the run: those of one row, counted, times steps and batch; None, and why, where nothing says."""
    journal = folder / "metrics.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
    if not lines or "batch" not in ran:
        return None, ("no run.toml and metrics.jsonl: its training is unknown",)
    if recipes(model):
        return None, ("a quantized base: its work is not counted",)
    tokenizer = tokenizer_of(model)
    encoded = task.encode_all(rows, tokenizer, check_length(model, ran.get("length")))
    steps = int(json.loads(lines[-1])["step"])
    return flops.training(model, task, encoded, tokenizer) * steps * int(ran["batch"]), ()


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
