"""Work as counted, not guessed: every matrix product and attention that a model really runs on some of the rows.

torch's flop counter, with the operations that it leaves out on CPUs (attention, products in place). Rows go one by one,
so that padding does not count, and after a first one that is not counted: it may find things out once and for all.
Elementwise work, norms, softmax and the optimizer are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from featherweight.plan.facts import size
from featherweight.plan.live import LIKE, flops_of

if TYPE_CHECKING:
    from torch import nn

    from featherweight.data.types import Encoded
    from featherweight.tasks.task import Task

aten = torch.ops.aten
LEFT_OUT = {op: flops_of(op).__wrapped__ for op in (*LIKE, aten.addmm_, aten.baddbmm_)}  # type: ignore[union-attr]
SAMPLE = 8  # rows that are counted; the mean stands for all
WRITTEN = 2  # rows that are counted where texts are written, token by token


def counted(work: Callable[[], Any]) -> int:
    """Floating-point operations of a call; a product of (m, k) and (k, n) is 2 m k n."""
    with FlopCounterMode(display=False, custom_mapping=LEFT_OUT) as counter:
        work()
    return int(counter.get_total_flops())


def sample(rows: Sequence[Any], most: int) -> list[Any]:
    """Evenly spread over the rows sorted by length, so that the mean of few is close to that of all."""
    order = sorted(rows, key=size)
    step = len(order) / min(most, len(order))
    return [order[int((i + 0.5) * step)] for i in range(min(most, len(order)))]


def inference(model: nn.Module, task: Task, rows: Sequence[Encoded], tokenizer: Any, most: int | None = None) -> float:
    """FLOPs of answering one row, the mean of `most` rows."""
    from featherweight.evaluate import run

    def work(row: Encoded) -> None:
        run.predictions(model, task, [row], tokenizer, 1)

    return each(work, sample(rows, most or (WRITTEN if task.generates else SAMPLE)))


def training(model: nn.Module, task: Task, rows: Sequence[Encoded], tokenizer: Any, most: int = SAMPLE) -> float:
    """FLOPs of one row's loss and of its gradients with respect to whatever trains now."""
    from featherweight.data.collate import collate
    from featherweight.tasks.check import pad_id
    from featherweight.tasks.modes import evaluating, inner

    pad, device = pad_id(model, tokenizer), next(inner(model).parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]

    def work(row: Encoded) -> None:
        batch = {name: tensor.to(device) for name, tensor in collate([row], pad).tensors.items()}
        loss, _ = task.loss(model, batch)
        torch.autograd.grad(loss, trained, allow_unused=True)

    with evaluating(model):
        return each(work, sample(rows, most))


def each(work: Callable[[Any], None], rows: Sequence[Any]) -> float:
    """The mean count of a row, once the first has been run for nothing."""
    work(rows[0])
    return sum(counted(partial(work, row)) for row in rows) / len(rows)
