"""BitFit: only the biases train.

    h = W x + b'                  b' starts at the pretrained b

All biases of the model, norms' included, or those of the modules named by `targets`. About 0.1 % of BERT: 11 d per
layer (q, k, v, o 4 d, feed-forward 5 d, two norms 2 d for an inner size of 4 d), plus d for the embedding's norm and
d for the pooler. Models without biases (Llama, T5, Mistral) are refused, unless `create=True` gives their linear layers
biases of zero (T-Few's, q k v o and the two inner projections: `targets=("attention", "gate", "up")`); plain weights
have no place for those, so they cannot be merged. Weight decay is off.
Source: Ben Zaken, Ravfogel and Goldberg 2021, arXiv:2106.10199; the subset query + middle feed-forward is section 3's;
created biases: Liu et al. 2022, arXiv:2205.05638, appendix D.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.anatomy import anatomy
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.replace import Copies, master, replacement
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve


@dataclass(frozen=True, repr=False)
class BitFit(Method):
    """Train the biases; `targets` narrows them to roles, a regex or a predicate, e.g. `("query", "up")`.

    `create` also gives one to linear layers that have none: of the blocks, or those that `targets` names.
    """

    targets: Targets = "all"
    create: bool = False

    paper: ClassVar[str] = "Ben Zaken et al. 2021, arXiv:2106.10199"
    place: ClassVar[str] = "every bias of the trunk"
    lr: ClassVar[float] = 1e-3
    lr_source: ClassVar[str] = "Ben Zaken et al. 2021, grid 1e-4 to 1e-3"

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        return not self.create

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        kinds = ("linear", "conv", "norm", "other")
        if self.targets == "all":
            there = anatomy(model)
            head = {id(s.module) for s in there.sites("head")}
            bare = {id(s.module) for s in there.sites("linear")} if self.create else set()
            found = [Site(p, m) for p, m in base_modules(model) if id(m) in bare or (biased(m) and id(m) not in head)]
        else:
            sites = resolve(model, self.targets, kinds)
            found = [s for s in sites if biased(s.module) or (self.create and s.kind == "linear")]
        if not found:
            raise InputError(
                Problem(
                    f"{self!r} finds no bias in {type(model).__name__}",
                    fix="make some with BitFit(create=True), tune its norms instead (LayerNorm()), or use LoRA",
                )
            )
        return [s if s.rows is not None else Site(s.path, s.module, s.role) for s in found]

    def shared(self, model: nn.Module) -> Copies:
        return {}

    def build(self, site: Site, shared: Copies) -> Adapter:
        return replacement(site, shared, ["bias"]) if biased(site.module) else NewBias(site.host.weight)


class NewBias(Adapter):
    """y' = y + b, b (out,) starting at 0, on a linear layer that has none."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(weight.shape[0], dtype=master(weight.dtype), device=weight.device))

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y = base(x)
        return y + self.bias.to(y.dtype)


def biased(module: nn.Module) -> bool:
    return module._parameters.get("bias") is not None
