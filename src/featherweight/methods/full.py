"""Full fine-tuning: every parameter trains.

    θ' = θ + Δ                    Δ has as many parameters as θ

Kept as replacements beside the base, so that switching it off gives the base back bit for bit; a 16-bit base trains
on fp32 copies. Costs the memory of a second model, and with AdamW two more. It is the yardstick the other methods are
measured with.
Source: Devlin et al. 2019 (BERT) for the recipe of encoders; Howard and Ruder 2018 for fine-tuning as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from featherweight.core.adapter import Adapter
from featherweight.core.anatomy import holds
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.replace import Copies, replacement
from featherweight.core.site import Site


@dataclass(frozen=True, repr=False)
class Full(Method):
    """Train all of the model. No fields."""

    paper: ClassVar[str] = "Devlin et al. 2019, BERT, arXiv:1810.04805"
    place: ClassVar[str] = "every module with tensors"
    per_row: ClassVar[bool] = False
    lr: ClassVar[float] = 5e-5
    lr_source: ClassVar[str] = "BERT's grid 2e-5 to 5e-5"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        return [Site(p, m) for p, m in base_modules(model) if holds(m)]

    def shared(self, model: nn.Module) -> Copies:
        return {}

    def build(self, site: Site, shared: Copies) -> Adapter:
        return replacement(Site(site.path, site.module), shared)
