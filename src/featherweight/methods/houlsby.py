"""Houlsby adapters (Adapter-H): two bottlenecks per block, inside the residuals.

    y = x + h + g(h)      h = the attention's output, then the feed-forward's;  g(h) = U act(D h + c) + e

          attention ── o_proj ── g ─┬─ (+) ── norm      feed-forward ── down ── g ─┬─ (+) ── norm
               x ────────────────────────┘                     x ────────────────────────┘

D (b, d), U (d, b); b = ⌊d / reduction⌋ or `bottleneck`. 2 L (2 d b + b + d) parameters, and with `norms` those of each
block's norms (2 · 2 d per BERT block), trained as copies. In decoders with cross-attention nothing follows that, unless
`cross=True`. Weights start at N(0, 0.01) cut at two deviations, biases at 0: near the identity. Cannot be merged: act
stands between D and U. The base's own dropout on h falls on h + g(h).
Source: Houlsby et al. 2019, "Parameter-efficient transfer learning for NLP", arXiv:1902.00751.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from featherweight.core.adapter import Adapter
from featherweight.core.method import Method
from featherweight.core.places import Place, Plan
from featherweight.core.replace import replacement
from featherweight.methods.bottleneck import Bottleneck, Inserting, Shared, check, gaussian, linears


@dataclass(frozen=True, repr=False)
class Houlsby(Inserting, Method):
    """`bottleneck` wins over `reduction`; `skip` and `drop` are AdapterDrop's (blocks without, at rest in training;
    Rücklé et al. 2020, arXiv:2010.11918)."""

    activation: str = "swish"
    norms: bool = True
    cross: bool = False

    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    place: ClassVar[str] = "behind attention and feed-forward, inside the residual; norms"
    near: ClassVar[float] = 0.05
    lr: ClassVar[float] = 3e-4
    lr_source: ClassVar[str] = "Hu et al. 2021, table 9: Adapter-H on RoBERTa-large"

    def hosts(self, model: nn.Module) -> Sequence[Place]:
        check(self)
        plan = Plan(model, self.skip)
        norms = list(plan.norms()) if self.norms else []
        return [*plan.attention(self.cross), *plan.feedforward(), *norms]

    def build(self, site: Place, shared: Shared) -> Adapter:  # type: ignore[override]
        if site.role == "norm":
            return replacement(site, shared.copies)
        down, up = linears(site, self)
        gaussian(0.01, down, up, cut=2)
        return Bottleneck(site, self, shared, down, up)
