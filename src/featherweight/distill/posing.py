"""What a batch asks of both models: where answers are compared, which tokens count, and the task's own loss a row."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from featherweight.distill.losses import row_mean
from featherweight.distill.recipes.recipe import spread
from featherweight.distill.taps import Seen
from featherweight.tasks.token_loss import IGNORED


def attended(batch: Mapping[str, Tensor]) -> Tensor:
    """(b, s): real tokens."""
    ids = batch["input_ids"]
    return batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(ids, dtype=torch.bool)


def visible(real: Tensor, one_way: bool) -> Tensor:
    """(b, 1 or s, s): True where a query may look: at real tokens, in a causal model at none after itself."""
    if not one_way:
        return real[:, None, :]
    n = real.shape[1]
    return real[:, None, :] & torch.ones(n, n, dtype=torch.bool, device=real.device).tril()


def units_of(targets: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """(b,): what each row weighs: 1, or as many as it has targets."""
    return torch.ones(rows, device=device) if targets is None else (targets != IGNORED).sum(1)


def own_loss(task: Any, student: Seen, batch: Mapping[str, Tensor], targets: Tensor | None) -> Tensor:
    """(b,): the task's own loss, a mean over each row's targets; one that gives a sum over rows is shared evenly."""
    if targets is None:
        total: Tensor = task.loss_of(student.logits.float(), batch["labels"])
        rows = len(batch["input_ids"])
        return total.expand(rows) / rows
    kept = targets != IGNORED
    values = cross_entropy(student.logits[kept].float(), targets[kept], reduction="none")
    return row_mean(spread(values, kept), kept)
