"""What models answer to the same rows, a unit (a row, a trained token) at a time: right, how sure, how far apart.

confidence  max_v p(v)          agreement  argmax p_student = argmax p_teacher          KL(p_teacher ‖ p_student)
ECE = Σ_bins n_b/n |accuracy_b - confidence_b|       BINS bins of equal width     Guo et al. 2017

paired difference of two shares of the same n units, b right for the first alone, c for the second alone:
(b - c)/(n + 2) ± 1.96 √(b + c + 1 - (b - c)²/(n + 2)) / (n + 2)              Agresti and Min 2005
share k/n: Wilson's interval, at 95 % like the other
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featherweight.data.types import Encoded
from featherweight.distill.losses.logits import divergence
from featherweight.evaluate.run import answering, batches
from featherweight.tasks.modes import evaluating
from featherweight.tasks.task import Task
from featherweight.tasks.token_loss import IGNORED

BINS = 15
Z = 1.959963984540054  # 95 % of a normal distribution


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Answers:
    """One model's: `top` the class it puts first, `sure` how probable, `nll` of the label, `kl` from the teacher; each
    (units). `label` is the right class, the same for all models."""

    top: Tensor
    sure: Tensor
    nll: Tensor
    kl: Tensor
    label: Tensor

    @property
    def right(self) -> Tensor:
        return self.top == self.label

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    @property
    def ece(self) -> float:
        return calibration_error(self.sure, self.right)


def answers(models: Mapping[str, nn.Module], task: Task, rows: Sequence[Encoded], tokenizer: Any,
            batch: int = 32) -> dict[str, Answers]:  # fmt: skip
    """Each model's answers to labelled rows; the first one is the teacher. Their classes are cut to those of all."""
    found: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in models}
    first = next(iter(models.values()))
    with answering(first):
        for _, tensors in batches(first, rows, tokenizer, batch):
            given = {name: log_probabilities(model, task, tensors) for name, model in models.items()}
            shared = min(log_p.shape[-1] for log_p, _ in given.values())
            cut = {name: (log_p[:, :shared].log_softmax(-1), label) for name, (log_p, label) in given.items()}
            taught = next(iter(cut.values()))[0]
            for name, (log_p, label) in cut.items():
                sure, top = log_p.max(-1)
                nll = -log_p.gather(-1, label[:, None]).squeeze(-1)
                found[name].append((top, sure.exp(), nll, divergence(taught, log_p), label))
    return {
        name: Answers(*(torch.cat(parts).cpu() for parts in zip(*rows, strict=True))) for name, rows in found.items()
    }


def log_probabilities(model: nn.Module, task: Task, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """log p (units, classes) in fp32, and the right class of each unit."""
    device = next(model.parameters()).device
    mine = {name: t.to(device) for name, t in batch.items()}
    with evaluating(model):
        given, targets = task.pose(model, mine)
        logits: Tensor = model(**given).logits.float()
    if targets is None:
        return logits.log_softmax(-1), mine["labels"]
    kept = targets != IGNORED
    return logits[kept].log_softmax(-1), targets[kept]


def calibration_error(sure: Tensor, right: Tensor, bins: int = BINS) -> float:
    """ECE: how far confidence is from accuracy, a mean over bins of confidence ((i-1)/bins, i/bins]."""
    where = (sure.double() * bins).ceil().long().clamp(1, bins) - 1
    apart = torch.zeros(bins, dtype=torch.float64).index_add_(0, where, right.double() - sure.double())
    return float(apart.abs().sum() / len(sure))


def difference(first: Tensor, second: Tensor) -> Interval:
    """The share of `first` (units, bool) less that of `second` over the same units; the estimate is the plain one."""
    b, c, n = int((first & ~second).sum()), int((~first & second).sum()), len(first)
    middle, around = (b - c) / (n + 2), math.sqrt(b + c + 1 - (b - c) ** 2 / (n + 2)) / (n + 2)
    return Interval((b - c) / n, max(-1.0, middle - Z * around), min(1.0, middle + Z * around))


def mean_difference(first: Tensor, second: Tensor) -> Interval:
    """The mean of first - second (units) over the same units, with a normal interval."""
    apart = first.double() - second.double()
    middle, around = float(apart.mean()), float(apart.std() / len(apart) ** 0.5) if len(apart) > 1 else math.inf
    return Interval(middle, middle - Z * around, middle + Z * around)


def share(hits: int, n: int) -> Interval:
    """hits/n with Wilson's interval."""
    p, z = hits / n, Z * Z
    middle, around = (p + z / (2 * n)) / (1 + z / n), Z / (1 + z / n) * math.sqrt(p * (1 - p) / n + z / (4 * n * n))
    return Interval(p, middle - around, middle + around)
