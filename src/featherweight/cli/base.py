"""The model that a command works with: an adapter on its base, or a base alone."""

from pathlib import Path
from typing import Any

from featherweight.cli.schema import tasks
from featherweight.core.errors import InputError, Problem, did_you_mean


def opened(adapter: Path | None, model: str | None, task: str | None = None, device: str = "auto") -> tuple[Any, Any]:
    """(model with its tokenizer, task or None). With both flags the adapter is put on the model that is named.

    Raises InputError where neither flag is given or the task has no such name.
    """
    if adapter is None and model is None:
        fix = "--adapter DIR for a tuned model, --model DIR for a plain one"
        raise InputError(Problem("which model?", "--adapter", fix=fix))
    wanted = named(task)
    from featherweight.interop import load_base, load_model

    labeled = wanted if getattr(wanted, "labels", True) else None  # a saved head brings its own number of labels
    loaded = load_base(model, labeled) if adapter is None else load_model(adapter, base=model)
    return loaded.to(place(device)), wanted


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
