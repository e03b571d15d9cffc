"""SHiRA: sparse high-rank adapters.

    W' = W + S v          v (k,) trains, at k = r (in + out) fixed places S of the matrix (out, in)

As many parameters as LoRA of rank r, and a change that is of high rank. The places are drawn at random, or are those
of the largest weights (`magnitude`), or those that the data say most about (`fisher`: FishMask's choice, matrix by
matrix). v starts at 0: the identity. Merge: W + S v, exact.
Source: Bhardwaj et al. 2024, "Sparse high rank adapters", arXiv:2406.13175.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Adapted, Method
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.state import single
from featherweight.core.targets import Targets, resolve
from featherweight.methods.fisher import fisher, threshold

MASKS = ("random", "magnitude", "fisher")


@dataclass(frozen=True, repr=False)
class SHiRA(Method):
    """`mask` is random (from `seed`), magnitude or fisher; `samples` is how many rows fisher reads (None: all)."""

    rank: int = 8
    targets: Targets = ("query", "value")
    mask: str = "random"
    seed: int = 0
    samples: int | None = 1024

    paper: ClassVar[str] = "Bhardwaj et al. 2024, arXiv:2406.13175"
    place: ClassVar[str] = "r (in + out) entries of each linear layer"
    lr: ClassVar[float] = 5e-4
    lr_source: ClassVar[str] = "LoRA's; no figure of its own paper was checked"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        wrong = []
        if self.mask not in MASKS:
            wrong.append(Problem("unknown mask", "method.mask", " or ".join(MASKS), repr(self.mask)))
        if self.samples is not None and self.samples < 1:
            wrong.append(Problem("too few samples", "method.samples", "1 or more, or None for all", repr(self.samples)))
        raise_all(wrong)
        return resolve(model, self.targets, ("linear",))

    def shared(self, model: nn.Module) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def build(self, site: Site, shared: torch.Generator) -> Adapter:
        weight: Tensor = site.host.weight
        out, into = weight.shape
        k, most = self.rank * (out + into), out * into // (out + into)
        if not 1 <= self.rank <= most:
            fits = f"1 to {most}, as {tuple(weight.shape)} has no more entries"
            raise_all([Problem("rank out of range", f"{site}: method.rank", fits, str(self.rank))])
        if self.mask == "magnitude" and weight.device.type != "meta":
            places = weight.detach().float().abs().flatten().topk(k).indices
        else:
            places = torch.randperm(out * into, generator=shared)[:k].to(weight.device)
        return Scattered(weight, places.sort().values)

    def prepare(self, model: nn.Module, adapters: Adapted, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Choose the places by Fisher information; what has been trained keeps its own."""
        own = [a for _, a in single(adapters) if isinstance(a, Scattered)]
        if self.mask != "fisher" or any(bool(a.shira_weight.any()) for a in own):
            return
        for a, score in zip(own, fisher(model, own, batches, self.samples), strict=True):
            bar, room = threshold([score], len(a.shira_weight))
            level = (score == bar).nonzero().flatten()[:room]
            a.put(torch.cat([(score > bar).nonzero().flatten(), level]).sort().values)


class Scattered(Adapter):
    """`shira_weight (k,)` at the rows and columns `shira_indices (2, k)`."""

    shira_indices: Tensor

    def __init__(self, weight: Tensor, places: Tensor):
        super().__init__()
        self.size, self.columns = weight.numel(), int(weight.shape[1])
        self.probes: dict[int, Tensor] | None = None  # while F̂ is measured: stand-ins of whole tensors
        self.shira_weight = nn.Parameter(torch.zeros(len(places), dtype=master(weight.dtype), device=weight.device))
        self.register_buffer("shira_indices", torch.empty(2, len(places), dtype=torch.int32, device=weight.device))
        self.put(places)

    @property
    def chosen(self) -> dict[str, "Scattered"]:
        return {"weight": self}

    @property
    def values(self) -> Tensor:
        return self.shira_weight

    def put(self, places: Tensor) -> None:
        """Take these entries of the flattened matrix."""
        self.shira_indices.copy_(torch.stack([places // self.columns, places % self.columns]))

    def misfits(self, prefix: str, tensors: Mapping[str, Tensor]) -> Iterable[Problem]:
        at, sides = tensors[f"{prefix}shira_indices"], (self.size // self.columns, self.columns)
        if int(at.min()) < 0 or any(int(row.max()) >= n for row, n in zip(at, sides, strict=True)):
            got = " and ".join(f"up to {int(row.max())}" for row in at)
            yield Problem("not places in the matrix", f"{prefix}shira_indices", f"rows and columns of {sides}", got)

    def merge(self, W: Any) -> dict[str, Tensor]:
        old = W["weight"]
        if self.probes is not None:
            return {"weight": self.probes.setdefault(id(self), old.detach().requires_grad_())}
        at = tuple(self.shira_indices.long())
        return {
            "weight": old.to(self.shira_weight.dtype).index_put(at, self.shira_weight, accumulate=True).to(old.dtype)
        }
