"""(IA)³: Infused Adapter by Inhibiting and Amplifying Inner Activations.

    k' = l_k ⊙ (K x)      v' = l_v ⊙ (V x)      FF(x) = W₂ (l_ff ⊙ γ(W₁ x))

One vector per key and value projection (it scales the output, bias included) and one per feed-forward block (it
scales the input of the narrowing projection, behind the non-linearity). All l start at 1. Count: d_k + d_v + f per
block, twice d_k + d_v where a decoder also attends to an encoder. Merging scales rows of K and V (with their biases)
and columns of W₂: exact.
Source: Liu et al. 2022, "Few-shot parameter-efficient fine-tuning is better and cheaper", arXiv:2205.05638.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.method import Adapted, Method
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve


@dataclass(frozen=True, repr=False)
class IA3(Method):
    """Scale the outputs of `targets` and the inputs of `feedforward`."""

    targets: Targets = ("key", "value")
    feedforward: Targets = ("down",)

    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    place: ClassVar[str] = "keys, values, inner feed-forward activation"
    lr: ClassVar[float] = 3e-3
    lr_source: ClassVar[str] = "Liu et al. 2022 with Adafactor, 1,000 steps"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        outputs = resolve(model, self.targets, ("linear",)) if self.targets else []
        inputs = resolve(model, self.feedforward, ("linear",), "method.feedforward") if self.feedforward else []
        both = {s.path for s in inputs}
        return [s for s in outputs if s.path not in both] + [Site(s.path, s.module, "down", s.rows) for s in inputs]

    def build(self, site: Site, shared: Any) -> Adapter:
        weight: Tensor = site.host.weight
        size = (1, weight.shape[1]) if site.role == "down" else (weight.shape[0], 1)
        ones = torch.ones(size, dtype=master(weight.dtype), device=weight.device)
        return RescaleInput(ones) if site.role == "down" else Rescale(ones)

    def groups(self, adapters: Adapted, lr: float) -> list[dict[str, Any]]:
        """No decay: it would pull the scales to 0, and their neutral value is 1."""
        return [g | {"weight_decay": 0.0} for g in super().groups(adapters, lr)]


class Rescale(Adapter):
    """y' = l ⊙ y, ia3_l (out, 1)."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.ia3_l = nn.Parameter(scale)

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y = base(x)
        return y * self.ia3_l.flatten().to(y.dtype)

    def merge(self, W: Any) -> dict[str, Tensor]:
        """Rows of the weight, and the bias: zero biases would hide its absence."""
        rows: dict[str, Tensor] = {"weight": (W["weight"].to(self.ia3_l.dtype) * self.ia3_l).to(W["weight"].dtype)}
        if getattr(W.host, "bias", None) is not None:
            rows["bias"] = (W["bias"].to(self.ia3_l.dtype) * self.ia3_l.flatten()).to(W["bias"].dtype)
        return rows


class RescaleInput(Adapter):
    """y' = W (l ⊙ x) + b, ia3_l (1, in)."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.ia3_l = nn.Parameter(scale)

    def forward(self, base: Any, x: Tensor) -> Tensor:
        return base(x * self.ia3_l.flatten().to(x.dtype))

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {"weight": (W["weight"].to(self.ia3_l.dtype) * self.ia3_l).to(W["weight"].dtype)}
