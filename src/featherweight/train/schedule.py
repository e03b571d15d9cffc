"""Learning-rate schedules: a factor of the peak rate, a pure function of the step, so there is nothing to save."""

from collections.abc import Callable
from math import ceil, cos, pi

SCHEDULES: dict[str, Callable[[float], float]] = {  # of the share of the run after warm-up that is done, in [0, 1)
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + cos(pi * done)),
}


def warmup_steps(warmup: float, total: int) -> int:
    """`warmup` below 1 is a share of the run, from 1 on a number of steps; never more than the run has."""
    return min(total, ceil(warmup * total) if warmup < 1 else round(warmup))


def factor(name: str, step: int, total: int, warmup: int = 0) -> float:
    """The factor for the update that makes step `step` (counted from 1 to `total`).

    Warm-up climbs linearly and reaches 1 at step `warmup`; the first step after it still runs at 1, and the last step
    of a linear schedule at 1 / (total - warmup), never at 0, so that no step is wasted.
    """
    if step <= warmup:
        return step / warmup
    return SCHEDULES[name]((step - 1 - warmup) / max(1, total - warmup))
