"""BitFit: only the biases train.

    h = W x + b'                  b' starts at the pretrained b

All biases of the model, norms' included, or those of the modules named by `targets`. About 0.1 % of BERT: 11 d per
layer (q, k, v, o 4 d, feed-forward 5 d, two norms 2 d for an inner size of 4 d), plus d for the embedding's norm and
d for the pooler. Models without biases (Llama, T5, Mistral) are refused. Weight decay is off.
Source: Ben Zaken, Ravfogel and Goldberg 2021, arXiv:2106.10199; the subset query + middle feed-forward is section 3's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from featherweight.core.adapter import Adapter
from featherweight.core.anatomy import anatomy
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.replace import Copies, replacement
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve


@dataclass(frozen=True, repr=False)
class BitFit(Method):
    """Train the biases; `targets` narrows them to roles, a regex or a predicate, e.g. `("query", "up")`."""

    targets: Targets = "all"

    paper: ClassVar[str] = "Ben Zaken et al. 2021, arXiv:2106.10199"
    place: ClassVar[str] = "every bias of the trunk"
    lr: ClassVar[float] = 1e-3
    lr_source: ClassVar[str] = "Ben Zaken et al. 2021, grid 1e-4 to 1e-3"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        kinds = ("linear", "conv", "norm", "other")
        if self.targets == "all":
            head = {id(s.module) for s in anatomy(model).sites("head")}
            found = [Site(p, m) for p, m in base_modules(model) if biased(m) and id(m) not in head]
        else:
            found = [s for s in resolve(model, self.targets, kinds) if biased(s.module)]
        if not found:
            raise InputError(
                Problem(
                    f"{self!r} finds no bias in {type(model).__name__}",
                    fix="tune its norms instead (LayerNorm()), or use LoRA",
                )
            )
        return [s if s.rows is not None else Site(s.path, s.module, s.role) for s in found]

    def shared(self, model: nn.Module) -> Copies:
        return {}

    def build(self, site: Site, shared: Copies) -> Adapter:
        return replacement(site, shared, ["bias"])


def biased(module: nn.Module) -> bool:
    return module._parameters.get("bias") is not None
