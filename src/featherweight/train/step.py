"""One optimizer step: micro-batches, the sum over ranks, the guards, the update.

    g = 1/N · Σ_ranks Σ_micro ∇ Σ_units ℓ + ∇ penalty          N = units of an average global batch (`Feed.mass`)

The same N divides every micro-batch of every rank, so their split does not change the update (but for the order of
summation and, with dropout, for the noise: each micro-step of each rank draws its own), and every trained token of an
epoch weighs the same.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core import state as core
from featherweight.core.adapter import Adapter
from featherweight.core.errors import FeatherweightError, InputError, Problem, listed
from featherweight.core.method import Method
from featherweight.core.switch import refresh
from featherweight.evaluate.progress import quiet
from featherweight.tasks import Task
from featherweight.train import finite
from featherweight.train.audit import audit, watching
from featherweight.train.feed import Feed, moved
from featherweight.train.measuring import Measured
from featherweight.train.optimizers import head_rates, optimizer, parameters, scale_rates
from featherweight.train.paged import home, room
from featherweight.train.ranks import Ranks
from featherweight.train.schedule import factor, warmup_steps
from featherweight.train.seeds import reseed
from featherweight.train.settings import Settings

Trained = Mapping[str, tuple[Method, Mapping[str, Adapter]]]  # adapter's name -> its method and adapters by host
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Done:
    """What a step did: summed loss (nats) and units over all ranks, norm of the gradient, first group's rate."""

    loss: float
    units: float
    norm: float
    rate: float


class Stepper:
    """Makes the steps of one run. `total` is the number of steps the schedule is laid out for; `folder` where states
    are paged to."""

    def __init__(
        self, model: nn.Module, task: Task, feed: Feed, trained: Trained, settings: Settings, ranks: Ranks, total: int,
        folder: Path | None = None, say: Callable[[str], None] = quiet,
    ):  # fmt: skip
        self.model, self.task, self.feed, self.trained = model, task, feed, trained
        self.settings, self.ranks, self.total = settings, ranks, total
        self.warmup = warmup_steps(settings.warmup, total)
        self.prepare(say)
        pages = home(ranks.device, folder) if settings.paged else None
        methods = list(trained.values())
        heads = head_rates(model, methods, settings.head_lr)
        self.optimizer = optimizer(settings.optimizer, methods, settings.lr, settings.decay, pages, heads)
        self.parameters = parameters(self.optimizer)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=settings.precision == "fp16")
        self.audited = False
        self.still: list[str] = []  # tensors whose first gradient was zero

    def prepare(self, say: Callable[[str], None]) -> None:
        """Let the methods start from data or weights, and say so; every rank sees the same batches."""
        reseed(self.settings.seed, "prepare")
        for method, adapters in self.trained.values():
            batches = Measured(type(method).__name__.lower(), self.batches, self.summed, say)
            method.prepare(self.model, adapters, batches)
            batches.done()
        refresh(self.model)  # a start may bring parameters of its own

    def summed(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The task's loss of one micro-batch, summed over its units."""
        with self.arithmetic():
            return self.task.loss(model, batch)[0]

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The global batches of the first epoch, as `prepare` gets them."""
        for number in range(1, self.feed.order.per_epoch + 1):
            for micro in self.feed.step(number, Ranks(self.ranks.device), self.settings.accumulate):
                yield moved(self.feed.collate(micro).tensors, self.ranks.device)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The precision that forward passes run in."""
        half = HALVES.get(self.settings.precision)
        return nullcontext() if half is None else torch.autocast(self.ranks.device.type, half)

    def make(self, step: int) -> Done:
        """Make step number `step` (from 1). Raises NotFinite or NoGradient before anything is changed."""
        scale_rates(self.optimizer, factor(self.settings.schedule, step, self.total, self.warmup))
        loss, units = self.gradients(step)
        norm = self.guard(step, loss, units)
        with room(self.optimizer):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        for method, adapters in self.trained.values():
            method.after_step(adapters, step, self.total)
        self.optimizer.zero_grad(set_to_none=True)
        return Done(loss, units, norm, self.optimizer.param_groups[0]["lr"])

    def gradients(self, step: int) -> tuple[float, float]:
        """Leave the gradient of the summed loss over N (times the scaler's scale) in `.grad`: (loss sum, units)."""
        self.optimizer.zero_grad(set_to_none=True)
        with nullcontext() if self.audited else watching(self.model) as watch:
            loss, units = self.ranks.total(*self.accumulate(step))
        if not units:
            rows = listed(self.feed.where(step))
            raise InputError(
                Problem("no row of this batch has a label or trained token", rows, fix="remove these rows")
            )
        if watch is not None and isfinite(loss):
            self.still = audit(self.tensors(), watch, self.ranks)
            self.audited = True
        self.ranks.sum_gradients(self.parameters)
        self.penalize()
        return loss, units

    def tensors(self) -> dict[str, Tensor]:
        """`<name>/<path of host>.<parameter>` -> what is trained."""
        return {f"{n}/{k}": t for n in self.trained for k, t in core.live(self.model, n).items() if t.requires_grad}

    def accumulate(self, step: int) -> tuple[float, float]:
        """Backward through this rank's micro-batches: (summed loss, units)."""
        sums = torch.zeros(2, device=self.ranks.device)
        for micro, items in enumerate(self.feed.step(step, self.ranks, self.settings.accumulate)):
            loss, units = self.loss(step, micro, items)
            sums += torch.stack([loss.detach().float(), units.detach().float()]).to(sums.device)
            if loss.requires_grad:
                self.scaler.scale(loss / self.feed.mass).backward()
        loss_sum, count = sums.tolist()
        return loss_sum, count

    def loss(self, step: int, micro: int, items: Any) -> tuple[Tensor, Tensor]:
        batch = moved(self.feed.collate(items).tensors, self.ranks.device)
        reseed(self.settings.seed, "noise", step, micro, self.ranks.rank)
        with self.arithmetic():
            return self.task.loss(self.model, batch)

    def penalize(self) -> None:
        """Add the gradient of the methods' penalties: once, whatever the number of ranks and micro-batches."""
        for method, adapters in self.trained.values():
            penalty = method.penalty(adapters)
            if penalty is not None:
                self.scaler.scale(penalty).backward()

    def guard(self, step: int, loss: float, units: float) -> float:
        """Clip, and give the norm; raises NotFinite naming rows where loss or gradient is not finite."""
        if not isfinite(loss):
            raise self.blame(step, "the loss")
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or float("inf")))
        if isfinite(norm):
            return norm
        if not self.scaler.is_enabled():
            raise self.blame(step, "the gradient")
        if self.scaler.get_scale() < 1:  # the scaler has halved and halved, and it still overflows
            raise self.blame(step, "the fp16 gradient, at every scale,")
        return norm  # the scaler leaves this update out and lowers its scale

    def blame(self, step: int, what: str) -> FeatherweightError:
        """Run the rows one by one and build the error that names the offenders."""
        mine = [i for items in self.feed.step(step, self.ranks, 1) for item in items for i in item]
        alone = Feed(self.feed.rows, 1, 0, self.feed.pad)
        wheres = [self.feed.rows[i].where for i in mine]

        def loss_of(index: int) -> Tensor:
            batch = moved(alone.collate([[mine[index]]]).tensors, self.ranks.device)
            reseed(self.settings.seed, "noise", step, 0, self.ranks.rank)
            with self.arithmetic():
                return self.task.loss(self.model, batch)[0]

        bad = self.ranks.gather(finite.offenders(wheres, loss_of, self.parameters))
        return finite.error(step, what, bad, self.feed.where(step), self.model)
