"""Observers: the range that static activations are quantized in, from a module's inputs on calibration data.

    minmax    least and greatest of all                       average   of each batch, moving: m += (batch - m) / 10
    99.99     that percentile of |x|, or of either end        mse       the range of least squared error

Percentile and mse work on a histogram of 8,192 bins whose width doubles when a value lies outside, so that memory does
not grow with the data. A range always holds 0. Static or dynamic: Nagel et al. 2021, arXiv:2106.08295, section 3.
"""

from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import Problem
from featherweight.quant.ranges import range_error

HALF = 4096  # bins on each side of 0
MOVE = 0.1  # share of a batch in the moving average
SHRINK = tuple(i / 100 for i in range(100, 4, -1))  # of the range, tried by mse
NAMES = ("minmax", "average", "mse")


class Observer:
    """Least and greatest of what was seen, and how many tokens that was. `symmetric`: ±r is what will be used."""

    def __init__(self, symmetric: bool):
        self.symmetric, self.tokens = symmetric, 0
        self.low = self.high = torch.zeros(())

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """x (tokens, in). What is not finite has no place in a range."""
        finite = x.detach().float()
        finite = finite[finite.isfinite()]
        if finite.numel():
            self.note(finite, finite.amin().clamp(max=0).cpu(), finite.amax().clamp(min=0).cpu())
        self.tokens += len(x)

    def note(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def range(self) -> tuple[Tensor, Tensor]:
        return self.low, self.high


class Average(Observer):
    """A moving average of the ranges of batches."""

    def note(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        share = MOVE if self.tokens else 1.0
        self.low, self.high = torch.lerp(self.low, low, share), torch.lerp(self.high, high, share)


class Histogram(Observer):
    """Counts in bins over [-reach, reach]."""

    def __init__(self, symmetric: bool):
        super().__init__(symmetric)
        self.reach, self.counts = 0.0, torch.zeros(2 * HALF, dtype=torch.float64)

    def note(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        super().note(x, low, high)
        most = float(torch.maximum(-low, high))
        self.reach = self.reach or most
        while most > self.reach:
            merged = self.counts.view(HALF, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[HALF // 2 : HALF // 2 + HALF] = merged
            self.reach *= 2
        if self.reach:
            self.counts += torch.histc(x, 2 * HALF, -self.reach, self.reach).cpu()

    def centers(self) -> Tensor:
        return (torch.arange(2 * HALF, dtype=torch.float64) + 0.5 - HALF) * (self.reach / HALF)


class Percentile(Histogram):
    """Leaves the greatest magnitudes out, or as many of either end."""

    def __init__(self, symmetric: bool, percent: float):
        super().__init__(symmetric)
        self.percent = percent

    def range(self) -> tuple[Tensor, Tensor]:
        if self.symmetric:
            r = self.edge(self.counts[HALF:] + self.counts[:HALF].flip(0))
            return -r, r
        ends = self.edge(self.counts.flip(0), HALF), self.edge(self.counts, HALF)
        return torch.maximum(-ends[0], self.low), torch.minimum(ends[1], self.high)

    def edge(self, counts: Tensor, start: int = 0) -> Tensor:
        """The upper end of the bin in which the percentile lies, bins counted from `start` upward; 0 or more."""
        at = int(torch.searchsorted(counts.cumsum(0), counts.sum() * self.percent / 100)) + 1 - start
        most = torch.maximum(-self.low, self.high)
        return torch.minimum(torch.tensor(max(at, 0) * self.reach / HALF), most)


class MSE(Histogram):
    """The part of the range whose codes have the least squared error."""

    def range(self) -> tuple[Tensor, Tensor]:
        x, shrink = self.centers(), torch.tensor(SHRINK, dtype=torch.float64)[:, None]
        errors = range_error(x, self.low * shrink, self.high * shrink, self.symmetric).square() @ self.counts
        best = float(shrink[errors.argmin(), 0])
        return self.low * best, self.high * best


def observer(kind: float | str, symmetric: bool) -> Observer:
    """The observer of this name, or of this percentile."""
    if isinstance(kind, str):
        return {"minmax": Observer, "average": Average, "mse": MSE}[kind](symmetric)
    return Percentile(symmetric, kind)


def problem(noun: Any) -> Problem | None:
    """What is wrong with a scheme's `observer`."""
    kind = noun.observer
    if kind in NAMES or (type(kind) in (int, float) and 50 < kind <= 100):
        return None
    known = f"{', '.join(map(repr, NAMES))} or a percentile above 50 (99.99)"
    return Problem("not a valid value", f"{type(noun).__name__}.observer", known, repr(kind))
