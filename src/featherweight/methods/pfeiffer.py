"""Pfeiffer adapters (Adapter-P): one bottleneck per block, behind the feed-forward, reading the finished sum.

    y = norm(x + h + g(norm(x + h)))     where the norm follows the sum (BERT)
    y = x + h + g(x + h)                 where it does not (GPT-2, Llama, T5)         h = the feed-forward's output

D (b, d), U (d, b), g(z) = U act(D z + c) + e: L (2 d b + b + d) parameters, half of Houlsby's, and one place to wait
for. In the first case the host is that norm and is called twice. Weights start at N(0, 0.02), biases at 0. Cannot be
merged. Which of the two cases a model is shows when it runs: attaching runs its first block on five tokens.
Source: Pfeiffer et al. 2020, "AdapterFusion" and "MAD-X", arXiv:2005.00247 and 2005.00052.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from featherweight.core.adapter import Adapter
from featherweight.core.method import Method
from featherweight.core.places import Place, Plan
from featherweight.methods.bottleneck import Bottleneck, Inserting, Shared, check, gaussian, linears


@dataclass(frozen=True, repr=False)
class Pfeiffer(Inserting, Method):
    """`bottleneck` wins over `reduction`; `skip` and `drop` are AdapterDrop's (blocks without, at rest in training;
    Rücklé et al. 2020, arXiv:2010.11918)."""

    paper: ClassVar[str] = "Pfeiffer et al. 2020, arXiv:2005.00247"
    place: ClassVar[str] = "behind the feed-forward's residual sum"
    near: ClassVar[float] = 0.1
    lr: ClassVar[float] = 3e-4
    lr_source: ClassVar[str] = "Hu et al. 2021, table 9: Adapter-P on RoBERTa-large"

    def hosts(self, model: nn.Module) -> Sequence[Place]:
        check(self)
        return list(Plan(model, self.skip).sums())

    def build(self, site: Place, shared: Shared) -> Adapter:  # type: ignore[override]
        down, up = linears(site, self)
        gaussian(0.02, down, up)
        return Bottleneck(site, self, shared, down, up)
