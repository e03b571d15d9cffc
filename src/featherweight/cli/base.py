"""The model that a command works with: an adapter on its base, or a base alone."""

from pathlib import Path
from typing import Any

from featherweight.cli.recipes import read
from featherweight.cli.schema import tasks
from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all


def opened(
    adapter: Path | None, model: str | None, task: str | None = None, device: str = "auto", quantize: str | None = None
) -> tuple[Any, Any]:
    """(model with its tokenizer, task or None). With both flags the adapter is put on the model that is named.

    quantize: what `recipes.gathered` made of the flag; without it an adapter's base is what it was trained on.
    Raises InputError where neither flag is given or the task or the number format has no such name.
    """
    problems: list[Problem] = []
    recipe = read(quantize, "quantize", problems)
    if adapter is None and model is None:
        fix = "--adapter DIR for a tuned model, --model DIR for a plain one"
        problems.append(Problem("which model?", "--adapter", fix=fix))
    raise_all(problems)
    wanted = named(task)
    from featherweight.interop import load_base, load_model

    labeled = wanted if getattr(wanted, "labels", True) else None  # a saved head brings its own number of labels
    if adapter is None:
        loaded = load_base(model, labeled, quantize=recipe)
    else:
        loaded = load_model(adapter, base=model, quantize=recipe)
    return loaded.to(place(device)), wanted


QUANTIZE = "Number format of the base, as in training; none for a plain one (default: what the adapter was trained on)."


def named(task: str | None) -> Any:
    """The task of that name. Raises InputError with a did-you-mean."""
    if task is None:
        return None
    known = tasks()
    if task.lower() not in known:
        raise InputError(Problem("unknown task", "--task", got=repr(task), fix=did_you_mean(task.lower(), known)))
    return known[task.lower()]()


def place(device: str) -> str:
    """`auto` is CUDA, else MPS, else the CPU."""
    if device != "auto":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pairs(columns: str | None) -> dict[str, str] | None:
    """--columns text=review,label=stars as a mapping."""
    from featherweight.cli.config import read_columns

    return read_columns(columns) if columns else None


def fresh(output: Path, what: str) -> None:
    """Refuse to write over something. Raises InputError for a file or a folder that is not empty."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(Problem(f"{what} is there already", str(output), fix="name another --output, or remove it"))
