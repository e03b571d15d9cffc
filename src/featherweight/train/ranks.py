"""One process or several: which device a rank computes on, and the few sums that ranks share.

accelerate starts the process group (torchrun's variables, NCCL on CUDA, gloo on CPU). The model is not wrapped in
DistributedDataParallel: the trainable tensors are few, so the loop sums their gradients itself, once per step. Hosts
stay what they are, accumulation needs no `no_sync`, and a sum divided by all units is exact for uneven shares.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem

CHUNK = 1 << 24  # elements summed by one collective call


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sum over ranks of each value, in double precision."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        return list(sums.tolist())

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over ranks; a rank that has none (an empty share) counts as zero."""
        if self.world == 1:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for group in chunks([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([g.reshape(-1) for g in group])
            torch.distributed.all_reduce(flat)
            for g, summed in zip(group, flat.split([g.numel() for g in group]), strict=True):
                g.copy_(summed.view_as(g))

    def gather(self, mine: Sequence[Any]) -> list[Any]:
        """Every rank's items, in order of rank, on every rank."""
        if self.world == 1:
            return list(mine)
        shares: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(shares, list(mine))
        return [item for share in shares for item in share]

    def wait(self) -> None:
        """Return when all ranks are here."""
        if self.world > 1:
            torch.distributed.barrier()


def chunks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype together, up to CHUNK elements at a time."""
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        group: list[Tensor] = []
        for t in (t for t in tensors if t.dtype == dtype):
            if group and sum(g.numel() for g in group) + t.numel() > CHUNK:
                yield group
                group = []
            group.append(t)
        yield group


def ranks(device: str = "auto") -> Ranks:
    """This process's place. Raises InputError for a device that this machine does not have."""
    kind = device if device != "auto" else available()[0]
    if kind not in available():
        raise InputError(
            Problem("this machine has no such device", "device", " or ".join(["auto", *available()]), kind)
        )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks(torch.device(kind))
    from accelerate import PartialState

    state = PartialState(cpu=kind == "cpu")
    here = torch.device(kind, state.local_process_index) if kind == "cuda" else torch.device(kind)
    return Ranks(here, state.process_index, state.num_processes)


def available() -> list[str]:
    """Device types of this machine, best first."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    return [*found, "cpu"]


def split(items: Sequence[Any], parts: int) -> list[list[Any]]:
    """`parts` runs of almost equal length, in order; some are empty where there are fewer items than parts."""
    size, rest = divmod(len(items), parts)
    ends = [size * i + min(i, rest) for i in range(parts + 1)]
    return [list(items[a:b]) for a, b in pairwise(ends)]
