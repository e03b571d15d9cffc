"""Lin adapters (Adapter-L): one bottleneck per block with a LayerNorm of its own in front.

    y = o + U act(D LN(o) + c) + e        o = the block's output

D (b, d), U (d, b), LN fresh (gain 1, shift 0): L (2 d b + b + d) + 2 d L parameters. Weights start as
Houlsby's, at N(0, 0.01) cut at two deviations, biases at 0. Cannot be merged.
Source: Lin, Madotto and Fung 2020, "Exploring versatile generative language model via parameter-efficient transfer
learning", arXiv:2004.03829; Adapter-L of Hu et al. 2021, whose counts b 6 and 224 (GPT-2 M), 8 and 248 (L) give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from featherweight.core.adapter import Adapter
from featherweight.core.method import Method
from featherweight.core.places import Place, Plan
from featherweight.methods.bottleneck import Bottleneck, Inserting, Shared, check, gaussian, linears, resembling


@dataclass(frozen=True, repr=False)
class Lin(Inserting, Method):
    """`bottleneck` wins over `reduction`; `skip` and `drop` are AdapterDrop's (blocks without, at rest in training;
    Rücklé et al. 2020, arXiv:2010.11918)."""

    paper: ClassVar[str] = "Lin et al. 2020, arXiv:2004.03829"
    place: ClassVar[str] = "behind each block, with its own LayerNorm"
    near: ClassVar[float] = 0.1
    lr: ClassVar[float] = 3e-4
    lr_source: ClassVar[str] = "as Adapter-H and -P in Hu et al. 2021, table 9"

    def hosts(self, model: nn.Module) -> Sequence[Place]:
        check(self)
        return list(Plan(model, self.skip).ends())

    def build(self, site: Place, shared: Shared) -> Adapter:  # type: ignore[override]
        down, up = linears(site, self)
        gaussian(0.01, down, up, cut=2)
        return Bottleneck(site, self, shared, down, up, nn.LayerNorm(site.width, **resembling(site)))
