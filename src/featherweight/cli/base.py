"""The model that a command works with: an adapter on its base, or a base alone; and the task that is asked of it."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from featherweight.cli.gathered import values_of
from featherweight.cli.nouns import built, noun
from featherweight.cli.recipes import read
from featherweight.cli.schema import is_field, noun_keys, tasks
from featherweight.cli.value import Value
from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all

QUANTIZE = "Number format of the base, as in training; none for a plain one (default: what the adapter was trained on)."
OVER = "Adapters that it works over, where they are not beside it (a Fusion's): a=out/a,b=out/b."
TASK = "The task, where the adapter does not say; its options as in training: --task.overlap 64 (docs/tasks.md)."


def opened(
    adapter: Path | None,
    model: str | None,
    task: str | None = None,
    device: str = "auto",
    quantize: str | None = None,
    over: str | None = None,
) -> tuple[Any, Any]:
    """(model with its tokenizer, task or None). With both flags the adapter is put on the model that is named.

    task, quantize: what `gathered` made of the flags; options of a task that is not named, or that is the adapter's
    own, change the one on record. Without `quantize` an adapter's base is what it was trained on.
    Raises InputError where neither flag is given, for a task or number format that has no such name or options, and
    for a model whose head was never trained.
    """
    problems: list[Problem] = []
    recipe, values = read(quantize, "quantize", problems), values_of("task", task)
    if adapter is None and model is None:
        fix = "--adapter DIR for a tuned model, --model DIR for a plain one"
        problems.append(Problem("which model?", "--adapter", fix=fix))
    wanted = noun("task", tasks, values, problems) if "task.type" in values else None
    problems += [] if "task.type" in values else of_no_task(values)
    if over and adapter is None:
        problems.append(Problem("over is for an adapter", "--over", fix="--adapter DIR, or leave it out"))
    raise_all(problems)
    from featherweight.interop import load_base, load_model

    labeled = wanted if getattr(wanted, "labels", True) else None  # a saved head brings its own number of labels
    if adapter is None:
        loaded = load_base(model, labeled, quantize=recipe)
        trained_head(loaded, str(model), wanted)
    else:
        loaded = load_model(adapter, base=model, quantize=recipe, over=pairs(over, "--over"))
    return loaded.to(place(device)), over_record(loaded, wanted, values)


def named(task: str | None) -> Any:
    """The task of the flags (`gathered`), None without any. Raises InputError over a name or options it does not
    have."""
    problems: list[Problem] = []
    made = noun("task", tasks, values_of("task", task), problems)
    raise_all(problems)
    return made


def of_no_task(values: Mapping[str, Value]) -> list[Problem]:
    """Options, of a task that is not named, that no task has."""
    every = list(dict.fromkeys(name for kind in tasks().values() for name in noun_keys(kind)))
    return [Problem("unknown key", v.where, fix=did_you_mean(key.split(".")[1], every))
            for key, v in values.items() if not is_field(".".join(key.split(".")[:2]))]  # fmt: skip


def over_record(model: Any, wanted: Any, values: Mapping[str, Value]) -> Any:
    """The task that is asked for: the options over the one on record, where it is that one."""
    mine = {key.split(".", 1)[1]: value for key, value in values.items() if key != "task.type"}
    if not mine:
        return wanted
    from featherweight.evaluate.setting import task_of_model

    task = getattr(model, "task", None) or task_of_model(model)
    if wanted is not None and type(wanted) is not type(task):
        return wanted
    where = next(iter(mine.values())).where
    if task is None:
        raise InputError(Problem("an option of which task?", where, fix="name it: --task causallm"))
    problems: list[Problem] = []
    made = built(type(task), mine, problems, where, **{f.name: getattr(task, f.name) for f in fields(task)})
    raise_all(problems)
    return made


def trained_head(model: Any, path: str, task: Any) -> None:
    """Raise InputError for a head that the model's folder does not have: it would answer at random."""
    from featherweight.core.anatomy import anatomy

    heads = tuple(f"{site.path}." for site in anatomy(model).sites("head"))
    new = [name for name in model.new_tensors if name.startswith(heads)] if heads else []
    if new:
        what = "" if task is None else f" --task {type(task).__name__.lower()}"
        fix = f"train one: fw train --model {path} --data ROWS{what} --output out/run; then --adapter out/run"
        want, got = "a model saved with its head", f"{path} without {new[0]}"
        raise InputError(Problem("the model has no trained head for this task", "--model", want, got, fix))


def place(device: str) -> str:
    """`auto` is CUDA, else MPS, else the CPU."""
    if device != "auto":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pairs(columns: str | None, flag: str = "--columns") -> dict[str, str] | None:
    """--columns text=review,label=stars as a mapping."""
    from featherweight.cli.config import read_columns

    return read_columns(columns, flag) if columns else None


def fresh(output: Path, what: str) -> None:
    """Refuse to write over something. Raises InputError for a file or a folder that is not empty."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(Problem(f"{what} is there already", str(output), fix="name another --output, or remove it"))
