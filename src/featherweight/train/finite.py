"""When a loss or gradient is not finite: stop before the update and name the rows, narrowed down one by one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from featherweight.core.errors import FeatherweightError, listed


class NotFinite(FeatherweightError):
    """NaN or infinity in a loss or gradient; `rows` are the offenders as file:line."""

    def __init__(self, step: int, what: str, rows: Sequence[str], cause: str):
        self.step = step
        self.rows = tuple(rows)
        super().__init__(f"step {step}: {what} is not finite; {cause}: {listed(list(rows))}; the update was not made, "
                         "nothing of it was saved; look at these rows, or lower the learning rate")  # fmt: skip


def offenders(rows: Sequence[str], loss_of: Callable[[int], Tensor], parameters: Sequence[nn.Parameter]) -> list[str]:
    """The rows whose own loss, or own gradient, is not finite; `loss_of(i)` is the loss of row i alone."""
    found = []
    for i, where in enumerate(rows):
        for p in parameters:
            p.grad = None
        loss = loss_of(i)
        if bool(torch.isfinite(loss)):
            loss.backward()
            if all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
                continue
        found.append(where)
    for p in parameters:
        p.grad = None
    return found


def error(step: int, what: str, bad: Sequence[str], batch: Sequence[str], model: nn.Module) -> NotFinite:
    """The error to raise: the cause is the model where a weight is not finite, else rows, else the batch as a whole."""
    broken = [name for name, p in model.named_parameters() if p.is_floating_point() and not torch.isfinite(p).all()]
    if broken:
        return NotFinite(
            step, what, batch, f"weights of the model hold NaN or infinity already ({listed(broken, 4)}); rows"
        )
    if bad:
        return NotFinite(step, what, bad, f"{len(bad)} of the batch's {len(batch)} rows give it alone")
    return NotFinite(step, what, batch, "no row gives it alone, the batch of these rows does")
