"""A model over encoded rows: batches of like length, longest first, answers in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featherweight.tasks.check import pad_id
from featherweight.tasks.modes import evaluating, inner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featherweight.data.types import Encoded
    from featherweight.tasks.task import Task


Told = Callable[[int, int], None]  # rows done, rows in all


def silent(done: int, rows: int) -> None:
    """Tells nobody."""


def examine(
    model: nn.Module, task: Task, rows: Sequence[Encoded], tokenizer: Any, batch: int = 32, told: Told = silent
) -> tuple[float, int, list[Any] | None]:
    """(loss summed over units, units, predictions) of labelled rows in one pass; no predictions where they are text."""
    total, units, done = 0.0, 0, 0
    made: list[Any] = [None] * len(rows)
    with answering(model):
        for numbers, tensors in batches(model, rows, tokenizer, batch):
            loss, count, found = task.examine(model, tensors, tokenizer)
            total, units = total + float(loss), units + int(count)
            for number, prediction in zip(numbers, found or (), strict=found is not None):
                made[number] = prediction
            done += len(numbers)
            told(done, len(rows))
    return total, units, None if task.generates else made


def predictions(
    model: nn.Module, task: Task, rows: Sequence[Encoded], tokenizer: Any, batch: int = 32, told: Told = silent
) -> list[Any]:
    """The task's prediction of each row, in the order of `rows`; `told` how many are done after each batch."""
    made: list[Any] = [None] * len(rows)
    done = 0
    with answering(model):
        for numbers, tensors in batches(model, rows, tokenizer, batch):
            for number, prediction in zip(numbers, task.predict(model, tensors, tokenizer), strict=True):
                made[number] = prediction
            done += len(numbers)
            told(done, len(rows))
    return made


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Dropout and gradients off."""
    import torch

    with evaluating(model), torch.inference_mode():
        yield


def batches(
    model: nn.Module, rows: Sequence[Encoded], tokenizer: Any, batch: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """(row numbers, tensors on the model's device), longest rows first so that lack of memory shows at once."""
    from featherweight.data.collate import collate

    pad, device = pad_id(model, tokenizer), next(inner(model).parameters()).device
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].input_ids))
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        tensors = collate([rows[i] for i in numbers], pad).tensors
        yield numbers, {name: tensor.to(device) for name, tensor in tensors.items()}
