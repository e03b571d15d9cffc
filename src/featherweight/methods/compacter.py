"""Compacter: Houlsby's bottlenecks with both matrices as sums of Kronecker products of small ones.

    D = Σᵢ Aᵢ ⊗ (Sᵢ Tᵢ)     i = 1 … n;   Aᵢ (n, n),  Sᵢ (in/n, ρ),  Tᵢ (ρ, out/n)          y = x D + c

ρ (in + out) + out parameters per matrix; the rule A (n, n, n) once for the whole model, or per matrix with
`shared_rule=False`. Places are Houlsby's (two per block); `plus=True` is Compacter++, Pfeiffer's (one per block). A
starts at N(0, 1e-4) (0.01 where it is not shared), S and T Glorot-normal, biases at 0: near the identity. Cannot be
merged.
Source: Mahabadi et al. 2021, "Compacter", arXiv:2106.04647; rule: Zhang et al. 2021, arXiv:2102.08597.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import InputError, Problem
from featherweight.core.method import Method
from featherweight.core.places import Place, Plan
from featherweight.core.replace import replacement
from featherweight.methods.bottleneck import Bottleneck, Inserting, Shared, check, resembling, size


@dataclass(frozen=True, repr=False)
class Compacter(Inserting, Method):
    """`rank` is ρ, `n` the number of Kronecker products; `skip` and `drop` are AdapterDrop's (blocks without, at
    rest in training; Rücklé et al. 2020, arXiv:2010.11918)."""

    reduction: float = 32
    n: int = 4
    rank: int = 1
    shared_rule: bool = True
    plus: bool = False
    norms: bool = False
    activation: str = "gelu"

    paper: ClassVar[str] = "Mahabadi et al. 2021, arXiv:2106.04647"
    place: ClassVar[str] = "as Houlsby; plus: as Pfeiffer"
    lr: ClassVar[float] = 3e-3
    lr_source: ClassVar[str] = "Liu et al. 2022: 3e-3 with Adafactor, 500 steps; Mahabadi et al. 2021 the same"

    @property
    def near(self) -> float:  # type: ignore[override]
        """Over all architectures of the laws outputs move by 3.4e-7 at most with a shared rule, by 0.0013 without."""
        return 1e-5 if self.shared_rule else 0.002

    def hosts(self, model: nn.Module) -> Sequence[Place]:
        check(self)
        plan = Plan(model, self.skip)
        norms = list(plan.norms()) if self.norms and not self.plus else []
        return list(plan.sums()) if self.plus else [*plan.attention(cross=False), *plan.feedforward(), *norms]

    def build(self, site: Place, shared: Shared) -> Adapter:  # type: ignore[override]
        if site.role == "norm" and not self.plus:
            return replacement(site, shared.copies)
        b = self.fitting(site)
        if self.shared_rule and shared.rule is None:
            shared.rule = nn.Parameter(torch.empty(self.n, self.n, self.n, **resembling(site)).normal_(std=1e-4))
        down, up = (Kronecker(i, o, self, shared.rule, resembling(site)) for i, o in ((site.width, b), (b, site.width)))
        return Kroneckers(site, self, shared, down, up)

    def fitting(self, site: Place) -> int:
        """b. Raises InputError where the factors do not fit."""
        b = size(self, site.width)
        if self.rank < 1:
            raise InputError(Problem("rank out of range", "method.rank", "1 or more", str(self.rank)))
        if self.n < 1 or site.width % self.n or b % self.n:
            got = f"n {self.n}, width {site.width}, bottleneck {b}"
            raise InputError(Problem("n must divide the width and the bottleneck", f"{site}: method.n", got=got))
        return b


class Kroneckers(Bottleneck):
    """A bottleneck of Kronecker layers; a shared rule adds to the model once."""

    def added(self) -> int:
        down: Any = self.down
        up: Any = self.up
        return super().added() - (0 if self.first or down.phm_rule is not up.phm_rule else down.phm_rule.numel())


class Kronecker(nn.Module):
    """phm_rule (n, n, n), W_left (n, in/n, ρ), W_right (n, ρ, out/n), b (out,)."""

    def __init__(self, into: int, out: int, method: Compacter, rule: nn.Parameter | None, like: dict[str, Any]):
        super().__init__()
        n, rank = method.n, method.rank
        self.phm_rule = nn.Parameter(torch.empty(n, n, n, **like).normal_(std=0.01)) if rule is None else rule
        self.W_left = nn.Parameter(torch.empty(n, into // n, rank, **like))
        self.W_right = nn.Parameter(torch.empty(n, rank, out // n, **like))
        self.b = nn.Parameter(torch.zeros(out, **like))
        for factor in (*self.W_left.data, *self.W_right.data):
            nn.init.xavier_normal_(factor)

    def forward(self, x: Tensor) -> Tensor:
        W = torch.einsum("nij,nkr,nrl->ikjl", self.phm_rule, self.W_left, self.W_right)  # (n, in/n, n, out/n)
        return x @ W.reshape(-1, len(self.b)) + self.b
