"""Rank-k multiplicative scaling, of which (IA)³ is a case.

    W' = W ⊙ (b a)/k        β' = β ⊙ (b 1)/k        h = 1/k · Σⱼ bⱼ ⊙ (W (aⱼ ⊙ x) + β)

b (out, k), a (k, in), β the bias. k (in + out) parameters per matrix, k out or k in where `sides` trains one side only.
With k = 1, `sides="output"` is (IA)³ on keys and values and `sides="input"` (IA)³ on the feed-forward, exactly.

Everything at 1 is the identity, but then all k terms get the same gradient for ever and k behaves as 1: so a starts at
1 ± n in pairs, n uniform within `noise` and rounded to multiples of 2⁻¹⁰, whose sum is exact: still the identity to the
last bit. A ratio of weights is learned where LoRA learns a difference: a weight of 0 stays 0. No weight decay, which
would pull towards 0. Merge: W ⊙ (b a)/k.
Source: Liu et al. 2022, arXiv:2205.05638, for k = 1; for k > 1 the generalization W ⊙ (b a)/k beside LoRA's W + BA/r.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Adapted, Method
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve

SIDES = ("both", "output", "input")
GRID = 1024  # the noise is a multiple of 1/GRID: sums of a few such numbers are exact in fp32


@dataclass(frozen=True, repr=False)
class Scaling(Method):
    """`rank` is k; `sides` says whether b and a train (`"both"`), b alone (`"output"`) or a alone (`"input"`)."""

    rank: int = 1
    targets: Targets = ("key", "value")
    sides: str = "both"
    noise: float = 0.1

    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638 (k = 1)"
    place: ClassVar[str] = "linear layers"
    lr: ClassVar[float] = 3e-3
    lr_source: ClassVar[str] = "(IA)³'s, Liu et al. 2022 with Adafactor"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        wrong = []
        if self.rank < 1:
            wrong.append(Problem("rank out of range", "method.rank", "1 or more", str(self.rank)))
        if self.sides not in SIDES:
            wrong.append(Problem("unknown sides", "method.sides", " or ".join(SIDES), repr(self.sides)))
        if not 0 <= self.noise < 1:
            wrong.append(Problem("noise out of range", "method.noise", "0 <= noise < 1", str(self.noise)))
        raise_all(wrong)
        return resolve(model, self.targets, ("linear",))

    def build(self, site: Site, shared: Any) -> Adapter:
        return Scaled(site.host, self.rank, self.sides, self.noise)

    def groups(self, adapters: Adapted, lr: float) -> list[dict[str, Any]]:
        """No decay: it would pull the scales to 0, and their neutral value is 1."""
        return [g | {"weight_decay": 0.0} for g in super().groups(adapters, lr)]


class Scaled(Adapter):
    """scaling_b (out, k), scaling_a (k, in); a side that does not train is no parameter and stays at its start."""

    scaling_a: Tensor
    scaling_b: Tensor

    def __init__(self, host: Any, rank: int, sides: str, noise: float):
        super().__init__()
        out, into = host.weight.shape
        kind: dict[str, Any] = {"dtype": master(host.weight.dtype), "device": host.weight.device}
        starts = {"scaling_b": torch.ones(out, rank, **kind), "scaling_a": torch.ones(rank, into, **kind)}
        pairs = starts["scaling_a"][: rank // 2 * 2]
        apart = (torch.empty_like(pairs[::2]).uniform_(-noise, noise) * GRID).round() / GRID
        pairs[::2] += apart
        pairs[1::2] -= apart
        for name, start in starts.items():
            if sides in ("both", {"scaling_b": "output", "scaling_a": "input"}[name]):
                self.register_parameter(name, nn.Parameter(start))
            else:
                self.register_buffer(name, start)

    def forward(self, base: Any, x: Tensor) -> Tensor:
        if len(self.scaling_a) > 1:  # k calls of the host cost more than its weight rewritten once
            return super().forward(base, x)
        y = base(x * self.scaling_a[0].to(x.dtype))
        return y * self.scaling_b[:, 0].to(y.dtype)

    def merge(self, W: Any) -> dict[str, Tensor]:
        b, k = self.scaling_b, len(self.scaling_a)
        found = {"weight": scaled(W["weight"], (b @ self.scaling_a) / k)}
        if getattr(W.host, "bias", None) is not None:
            found["bias"] = scaled(W["bias"], b.sum(1) / k)
        return found


def scaled(W: Tensor, by: Tensor) -> Tensor:
    """W ⊙ by in the wider of the two dtypes, cast once."""
    return (W.to(by.dtype) * by).to(W.dtype)
