"""Feature-based transfer: a new head on frozen features, and if wanted the last blocks.

    y = C(h(x))                   h frozen but for its last k blocks, C trains

h is the pretrained trunk, C the task's head, d·C + C parameters for a linear one. Works where the new task is near
the old one.
Source: Peters et al. 2019, "To tune or not to tune?", arXiv:1903.05987; Devlin et al. 2019, section 5.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from featherweight.core.adapter import Adapter
from featherweight.core.anatomy import anatomy, holds
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.replace import Copies, replacement
from featherweight.core.site import Site


@dataclass(frozen=True, repr=False)
class Head(Method):
    """Train the head; `last=k` also trains the last k blocks (of the decoder, where there are two stacks)."""

    last: int = 0

    paper: ClassVar[str] = "Peters et al. 2019, arXiv:1903.05987"
    place: ClassVar[str] = "the head, and the last k blocks"
    lr: ClassVar[float] = 1e-3
    lr_source: ClassVar[str] = "Peters et al. 2019, feature extraction"

    @property
    def per_row(self) -> bool:  # type: ignore[override]
        """Heads may differ from row to row; unfrozen blocks rewrite the trunk for the whole batch."""
        return self.last == 0

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        there = anatomy(model)
        sites = list(there.sites("head"))
        if not 0 <= self.last <= len(there.blocks):
            raise InputError(
                Problem(
                    "not a number of blocks to unfreeze",
                    "method.last",
                    got=str(self.last),
                    expected=f"0 to {len(there.blocks)}",
                )
            )
        for path, block in there.blocks[len(there.blocks) - self.last :]:
            sites += [Site(p, m) for p, m in base_modules(block, path) if holds(m)]
        if not sites:
            raise InputError(
                Problem(
                    "the model has no head",
                    got=type(model).__name__,
                    fix="load it with a task's head, or train its last blocks: Head(last=1)",
                )
            )
        return sites

    def shared(self, model: nn.Module) -> Copies:
        return {}

    def build(self, site: Site, shared: Copies) -> Adapter:
        return replacement(Site(site.path, site.module), shared)
