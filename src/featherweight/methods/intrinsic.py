"""Intrinsic dimension: all parameters move, but within a random subspace of D dimensions.

    SAID   θ'_i = θ_i + λ_i P_i z      z (D − m,), one λ_i for each of the m tensors        structure=True
    DID    θ'_i = θ_i + P_i z          z (D,)                                               structure=False

P_i is a fixed Fastfood map (`fastfood.py`) into tensor i with E‖P_i z‖ = ‖z‖. z = 0 and λ = 1 at the start: the
identity. Count: D, whatever the model. Merge: θ + λ P z, exact. Stored: z, λ and, with the method, the seed and the
generator's version that P follows from. Every tensor of the trunk is computed anew in every step.
Source: Aghajanyan, Zettlemoyer and Gupta 2020, arXiv:2012.13255; Li et al. 2018, arXiv:1804.08838.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Method
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.targets import Targets
from featherweight.methods.fastfood import VERSION, Fastfood
from featherweight.methods.trunk import tensors, trunk


@dataclass(frozen=True, repr=False)
class Intrinsic(Method):
    """`dimension` is D, `generator` the version of what draws P from `seed`; `targets` narrows the trunk."""

    dimension: int = 500
    structure: bool = True
    seed: int = 0
    targets: Targets = "all"
    generator: int = VERSION

    paper: ClassVar[str] = "Aghajanyan et al. 2020, arXiv:2012.13255"
    place: ClassVar[str] = "every tensor of the trunk, through one vector"
    per_row: ClassVar[bool] = False
    lr: ClassVar[float] = 7.5e-3
    lr_source: ClassVar[str] = (
        "a quarter of T-Few's 3e-2, which is with Adafactor: with AdamW one seed of three stayed at its start on sst2"
    )

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        return trunk(model, self.targets)

    def shared(self, model: nn.Module) -> tuple["Subspace", dict[Hashable, tuple[int, Fastfood]]]:
        """z and λ, and for each tensor its number and its map."""
        found = {key: W for site in self.hosts(model) for key, W in tensors(site).values()}
        self.check(len(found))
        free = self.dimension - (len(found) if self.structure else 0)
        first = next(iter(found.values()))
        space = Subspace(free, len(found) if self.structure else 0, master(first.dtype), first.device)
        maps = {key: (i, Fastfood(W.numel(), free, self.seed, i, W.device)) for i, (key, W) in enumerate(found.items())}
        return space, maps

    def check(self, m: int) -> None:
        wrong = []
        least = m + 1 if self.structure else 1
        if self.dimension < least:
            wanted = f"{least} or more" + (f" (one λ for each of {m} tensors, and z)" if self.structure else "")
            fix = "structure=False needs no λ" if self.structure else ""
            wrong.append(Problem("dimension too small", "method.dimension", wanted, str(self.dimension), fix))
        if self.generator != VERSION:
            wrong.append(Problem("drawn by another generator", "method.generator", str(VERSION), str(self.generator),
                                 "use the version of featherweight that wrote it"))  # fmt: skip
        raise_all(wrong)

    def build(self, site: Site, shared: Any) -> Adapter:
        space, maps = shared
        return Projected(space, {name: maps[key] for name, (key, _) in tensors(site).items()})


class Subspace(nn.Module):
    """What all tensors share: `z` and `scales`, λ (m,), which DID has none of."""

    def __init__(self, free: int, m: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.z = nn.Parameter(torch.zeros(free, dtype=dtype, device=device))
        self.scales = nn.Parameter(torch.ones(m, dtype=dtype, device=device)) if m else None


class Projected(Adapter):
    """On every host; `of` holds the map of each of its tensors by name, `number` their places in λ."""

    def __init__(self, space: Subspace, maps: Mapping[str, tuple[int, Fastfood]]):
        super().__init__()
        self.space = space
        self.number = {name: i for name, (i, _) in maps.items()}
        self.of = nn.ModuleDict({name: P for name, (_, P) in maps.items()})

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {name: self.moved(name, W[name]) for name in self.number}

    def moved(self, name: str, W: Tensor) -> Tensor:
        """θ + λ P z, added in the wider of the two dtypes and cast once."""
        z = self.space.z.to(W.device)
        step = self.of[name](z)
        if self.space.scales is not None:
            step = step * self.space.scales[self.number[name]].to(W.device)
        return (W.to(step.dtype) + step.view(W.shape)).to(W.dtype)

    def added(self) -> int:
        return 0
