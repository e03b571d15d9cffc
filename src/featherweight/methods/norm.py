"""LayerNorm tuning: only the norms' gains and shifts train.

    LN(x) = γ' ⊙ (x − μ)/σ + β'    RMSNorm: γ' ⊙ x/rms(x)         γ', β' start at the pretrained γ, β

2 d parameters per LayerNorm, d per RMSNorm, the final norm included.
Source: Zhao et al. 2023, "Tuning LayerNorm in attention", arXiv:2312.11420; a baseline of Liu et al. 2022 (T-Few).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from featherweight.core.adapter import Adapter
from featherweight.core.method import Method
from featherweight.core.replace import Copies, replacement
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve


@dataclass(frozen=True, repr=False)
class LayerNorm(Method):
    """Train all norms, or those that `targets` (a regex or a predicate) picks."""

    targets: Targets = "norm"

    paper: ClassVar[str] = "Zhao et al. 2023, arXiv:2312.11420"
    place: ClassVar[str] = "every LayerNorm and RMSNorm"
    lr: ClassVar[float] = 1e-3
    lr_source: ClassVar[str] = "Zhao et al. 2023; T-Few used 3e-4"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        return resolve(model, self.targets, ("norm",))

    def shared(self, model: nn.Module) -> Copies:
        return {}

    def build(self, site: Site, shared: Copies) -> Adapter:
        return replacement(site, shared)
