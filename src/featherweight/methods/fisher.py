"""The diagonal of the empirical Fisher information, sample by sample.

    F̂ = 1/m Σ_i (∇ log p(y_i | x_i))²        log p(y | x) = −loss of the row, summed over its tokens

The gradient with respect to whole tensors is had without touching the base: while it is measured, each adapter lets its
host compute with a stand-in of the tensor that requires grad.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from featherweight.core.errors import FeatherweightError, InputError, Problem
from featherweight.core.prepare import own_loss


class Probed(Protocol):
    """An adapter that can be measured: `chosen` has, by name, what knows the `size` of a tensor and holds `values`."""

    probes: dict[int, Tensor] | None  # stand-ins of whole tensors, by id of what was chosen

    @property
    def chosen(self) -> Mapping[str, Any]: ...


def fisher(
    model: nn.Module, adapters: Sequence[Probed], batches: Iterable[Mapping[str, Tensor]], samples: int | None
) -> list[Tensor]:
    """F̂ of every tensor of the adapters, flat and in fp32, in their order; tied ones once.

    Dropout is off. Raises InputError where there is no sample.
    """
    loss_of: Callable[..., Tensor] = getattr(batches, "loss", own_loss)
    chosen = list({id(c): c for a in adapters for c in a.chosen.values()}.values())
    sums = [torch.zeros(c.size, device=c.values.device) for c in chosen]
    training = [m for m in model.modules() if m.training]
    probes: dict[int, Tensor] = {}
    count = 0
    try:
        model.eval()
        for a in adapters:
            a.probes = probes
        for row in islice(rows(batches), samples):
            for total, grad in zip(sums, gradients(loss_of(model, row), probes, [id(c) for c in chosen]), strict=True):
                if grad is not None:
                    total += grad.reshape(-1).float().square()
            count += 1
    finally:
        for a in adapters:
            a.probes = None
        for m in training:
            m.training = True
    if not count:
        raise InputError(Problem("no row to measure the Fisher information on", "prepare", "one batch or more"))
    return [total / count for total in sums]


def gradients(loss: Tensor, probes: Mapping[int, Tensor], order: Sequence[int]) -> list[Tensor | None]:
    """The gradient of the loss to each stand-in; None where this row does not use it."""
    there = [k for k in order if k in probes]
    if not there or not loss.requires_grad:
        raise FeatherweightError("the loss does not depend on the adapter: switch it on, then prepare it")
    found = dict(zip(there, torch.autograd.grad(loss, [probes[k] for k in there], allow_unused=True), strict=True))
    return [found.get(k) for k in order]


def rows(batches: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The rows of the batches, each a batch of its own. Raises InputError for packed ones, of several samples each."""
    for batch in batches:
        where = batch.get("position_ids")
        if where is not None and bool(((where == 0).sum(-1) > 1).any()):
            raise InputError(Problem("packed rows: the Fisher information wants its samples one by one", "packing",
                                     fix="packing=False"))  # fmt: skip
        for i in range(len(next(iter(batch.values())))):
            yield {k: t[i : i + 1] for k, t in batch.items()}


def threshold(scores: Sequence[Tensor], k: int) -> tuple[Tensor, int]:
    """(the k-th largest of all scores, how many scores of that very value are among the k)."""
    best = torch.cat([s.topk(min(k, len(s))).values for s in scores]).topk(k).values
    return best[-1], int((best == best[-1]).sum())
