"""VeRA: Vector-based Random matrix Adaptation.

    h = W x + λ_b ⊙ (B (λ_d ⊙ (A x)))

A (r, in) and B (out, r) are random, frozen and the same for every layer: drawn once (Kaiming uniform, from `seed` on
the CPU, exactly as PEFT draws them) for the widest of the adapted layers, and cut to each layer's size. λ_b (out,)
starts at 0, so the start is the identity; λ_d (r,) at `d_initial`. Count: out + r per matrix. Merge: W + diag(λ_b) B
diag(λ_d) A.
Source: Kopiczko, Blankevoort and Asano 2023, arXiv:2310.11454.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core.adapter import Adapter
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Method
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve
from featherweight.methods.lowrank import added


@dataclass(frozen=True, repr=False)
class VeRA(Method):
    """`save_projection=False` leaves A and B out of the file: `seed` draws them again. The vectors want a higher rate
    than a task head that trains along: see the setting `head_lr`.
    """

    rank: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    targets: Targets = ("query", "value")
    seed: int = 0
    save_projection: bool = True

    paper: ClassVar[str] = "Kopiczko et al. 2023, arXiv:2310.11454"
    place: ClassVar[str] = "linear layers"
    lr: ClassVar[float] = 1e-2
    lr_source: ClassVar[str] = "Kopiczko et al. 2023: 4e-3 to 1e-2 on GLUE with RoBERTa-base, heads apart (unverified)"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        return resolve(model, self.targets, ("linear",))

    def shared(self, model: nn.Module) -> "Projections":
        self.check()
        weights = [site.host.weight for site in self.hosts(model)]
        out, into = (max(W.shape[i] for W in weights) for i in (0, 1))
        return Projections(self.rank, out, into, self.seed, weights[0].device, self.save_projection)

    def check(self) -> None:
        wrong = []
        if self.rank < 1:
            wrong.append(Problem("rank out of range", "method.rank", "1 or more", str(self.rank)))
        if not 0 <= self.dropout < 1:
            wrong.append(Problem("dropout out of range", "method.dropout", "0 <= p < 1", str(self.dropout)))
        raise_all(wrong)

    def build(self, site: Site, shared: "Projections") -> Adapter:
        return Vectors(site.host, shared, self.d_initial, self.dropout)


class Projections(nn.Module):
    """vera_A (r, widest in), vera_B (widest out, r): frozen, in fp32."""

    def __init__(self, rank: int, out: int, into: int, seed: int, device: torch.device, saved: bool):
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        for name, shape in (("vera_A", (rank, into)), ("vera_B", (out, rank))):
            self.register_buffer(name, kaiming(shape, drawn, device), persistent=saved)

    def both(self) -> tuple[Tensor, Tensor]:
        held = dict(self.named_buffers())
        return held["vera_A"], held["vera_B"]


def kaiming(shape: tuple[int, int], drawn: torch.Generator, device: torch.device) -> Tensor:
    """Uniform within ±√(6/columns), drawn on the CPU so that every machine gets the same."""
    if device.type == "meta":
        return torch.empty(shape, device=device)
    # √3 · √2/√columns in this order: the very bound, to the last bit, that PEFT computes
    bound = 3.0**0.5 * (2.0**0.5 / shape[1] ** 0.5)
    return torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=drawn).to(device)


class Vectors(Adapter):
    """vera_lambda_b (out,), vera_lambda_d (r,), and the projections that every layer shares."""

    def __init__(self, host: Any, shared: Projections, d_initial: float, dropout: float):
        super().__init__()
        self.sizes = (int(host.weight.shape[0]), int(host.weight.shape[1]))
        kind: dict[str, Any] = {"dtype": master(host.weight.dtype), "device": host.weight.device}
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.sizes[0], **kind))
        self.vera_lambda_d = nn.Parameter(torch.full((len(shared.both()[0]),), d_initial, **kind))
        self.dropout = nn.Dropout(dropout)
        self.shared = shared

    def cut(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of this layer."""
        out, into = self.sizes
        A, B = self.shared.both()
        return A[:, :into].to(self.vera_lambda_d), B[:out].to(self.vera_lambda_b)

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y = base(x)
        A, B = self.cut()
        low = self.vera_lambda_d * F.linear(self.dropout(x).to(A.dtype), A)  # (..., r)
        return y + (self.vera_lambda_b * F.linear(low, B)).to(y.dtype)

    def merge(self, W: Any) -> dict[str, Tensor]:
        A, B = self.cut()
        return {"weight": added(W["weight"], (self.vera_lambda_b[:, None] * B) @ (self.vera_lambda_d[:, None] * A))}
