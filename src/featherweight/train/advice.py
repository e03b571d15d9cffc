"""Signs that a run is not learning, each with a learning rate to try: one line, never an error.

A run that predicts one class, or whose loss stays where it began, ends without any complaint; the rate is the commonest
cause. Too high is told from too low by the method's own rate, which its paper found good.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import listed
from featherweight.tasks import Task
from featherweight.tasks.classification import Classification


def one_class(task: Task, predictions: Sequence[Any], references: Sequence[Any]) -> str | None:
    """The label of every prediction where there is just one although the rows have several."""
    if not isinstance(task, Classification) or len(set(references)) < 2:
        return None
    chosen = {task.choice(p) for p in predictions}
    return chosen.pop() if len(chosen) == 1 else None


def flat(history: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """(first, lowest later) training loss where no later line of history is below the first."""
    losses = even([(int(record["step"]), float(record["loss"])) for record in history if "loss" in record])
    return (losses[0], min(losses[1:])) if len(losses) > 1 and min(losses[1:]) >= losses[0] else None


def even(lines: Sequence[tuple[int, float]]) -> list[float]:
    """The losses, the first line made one with the next while it stands for fewer steps: the luck of one batch."""
    steps, losses = [step for step, _ in lines], [loss for _, loss in lines]
    while len(steps) > 1 and steps[0] < steps[1] - steps[0]:
        losses[1] = (steps[0] * losses[0] + (steps[1] - steps[0]) * losses[1]) / steps[1]
        del steps[0], losses[0]
    return losses


def rate(used: float, own: float, rose: bool) -> float:
    """The rate to try: towards the method's own and at least a factor of 3 away from the one used."""
    return min(used / 3, own) if rose or used > own else max(used * 3, own)


def advice(label: str | None, rows: int, history: Sequence[Mapping[str, Any]], used: float, own: float) -> str | None:
    """The line to say, None where nothing looks wrong. `label`: see `one_class`, over `rows` dev rows."""
    stuck = flat(history)
    signs = [f"all {rows} dev predictions are {label!r}"] if label is not None else []
    if stuck is not None:
        signs.append(f"the loss never fell below its first value ({stuck[0]:.4f}, then {stuck[1]:.4f} at best)")
    if not signs:
        return None
    better = rate(used, own, rose=stuck is not None and stuck[1] > 1.01 * stuck[0])
    return (f"this run does not seem to learn: {' and '.join(signs)}; try lr={better:.2g} (this run: {used:.2g}) "
            "or more steps, and look at the rows with fw data")  # fmt: skip


def unmoved(name: str, lr: float, trained: Mapping[str, Tensor]) -> str | None:
    """The line to say before the first step where the optimizer's steps are relative to a tensor's size and some
    tensors begin at 0: torch's Adafactor moves them by at most a thousandth of the rate (its eps2)."""
    still = [key for key, p in trained.items() if not torch.any(p)] if name == "adafactor" else []
    if not still:
        return None
    return (f"adafactor moves a tensor in proportion to its size: {len(still)} of {len(trained)} begin at 0 and move "
            f"by at most {lr * 1e-3:.1g} a step ({listed(still, 2)}); take optimizer=adamw")  # fmt: skip
