"""DoRA: weight-decomposed low-rank adaptation.

    W' = c (W + s B A)        c = m / ‖W + s B A‖        one c and one m for each output row of the (out, in) weight

    h  = c (W x + b + s B A x) + (1 − c) b

m starts at the norms of W's rows, so the start is the identity; the norm is a constant in the backward pass (section
4.3). r(in + out) + out parameters per matrix. Embeddings: the rows are the H dimensions; convolutions: the output
channels. With dropout h = W x + b + (c − 1) W x' + c s B A x', x' the dropped x, as in PEFT: a second product with W.
Merge: the equation. m is the norm of the base's own rows: over another adapter the start is not the identity.

‖W + s B A‖² = ‖W‖² + 2 s ⟨W, B A⟩ + s² ‖B A‖² row by row, with ⟨W, B A⟩ = (A Wᵀ) ⊙ Bᵀ and ‖B A‖² = (A Aᵀ Bᵀ) ⊙ Bᵀ
summed over the rank: no dense B A. That reads all of W twice, most of a short call's time: while the adapter is not in
training the norms are kept for as long as W, A and B have the version, memory and sampled values that they had.
Source: Liu et al. 2024, arXiv:2402.09353.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.glimpse import Look, looks
from featherweight.methods.lora import LoRA
from featherweight.methods.lowrank import LowRank, LowRankConv, LowRankEmbedding, plain_table
from featherweight.methods.shifted import Shifted

FLOOR = 1e-12  # a norm below is taken for 0
# adapter -> what it looked like, and its norms; beside the adapter, so that neither copies nor files hold them
_norms: WeakKeyDictionary[nn.Module, tuple[tuple[Look, ...], Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True, repr=False)
class DoRA(LoRA):
    """LoRA's fields (the papers of the starts are on its page); `init` and `freeze_A` act on A and B, `lr_ratio` on
    B."""

    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    place: ClassVar[str] = "linear layers, embeddings, convolutions"
    lr: ClassVar[float] = 2e-4
    lr_source: ClassVar[str] = "Liu et al. 2024: 1e-4 and 2e-4 on LLaMA"

    def kinds(self, moved: bool) -> Mapping[str, type[LowRank]]:
        return {"linear": DecomposedLinear, "conv": DecomposedConv, "embedding": DecomposedEmbedding}


class Decomposed(Shifted):
    """Mixin: the direction W + s B A of each row, at the length `magnitude` (out,)."""

    def __init__(self, host: Any, rank: int, scale: float, dropout: float = 0.0, freeze_A: bool = False):
        super().__init__(host, rank, scale, dropout, freeze_A)
        self.magnitude = nn.Parameter(lengths(self.matrix(host.weight.detach()), self.A.dtype))

    def norms(self, W: Tensor) -> Tensor:
        """‖W + s B A‖ of each row (out,), a constant; that of the last call where nothing was changed since."""
        seen = None if self.training or torch.compiler.is_compiling() else looks(W, self.A, self.B)
        if seen is None:
            return self.measured(W)
        kept = _norms.get(self)
        if kept is None or kept[0] != seen:
            with torch.inference_mode(False):  # what is kept must serve a later training step too
                kept = _norms[self] = seen, self.measured(W)
        return kept[1]

    def train(self, mode: bool = True) -> Self:
        _norms.pop(self, None)  # what was trained past torch's books is met anew in any case
        return super().train(mode)

    def measured(self, W: Tensor) -> Tensor:
        """The norms, without a dense B A."""
        with torch.no_grad(), torch.autocast(W.device.type, enabled=False):
            M = self.matrix(W)
            A, B = (f.flatten(1) for f in self.factors())
            cross = (A.to(M.dtype) @ M.T).to(B.dtype)  # (r, out)
            inner = 2 * self.scale * cross + self.scale**2 * (A @ A.T @ B.T)
            return (lengths(M, B.dtype).square() + (inner * B.T).sum(0)).clamp_min(0).sqrt()

    def gain(self, norms: Tensor) -> Tensor:
        """c (out,). A row of (all but) zeros has no direction: it stays one, and its gradient finite."""
        return self.magnitude / norms.clamp_min(FLOOR)

    def along(self, rows: Tensor, y: Tensor) -> Tensor:
        """One number for each row of the weight, shaped to multiply an output."""
        return rows

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y, bias = base(x), bias_of(base)
        c = self.along(self.gain(self.norms(base["weight"])), y)
        b = 0 if bias is None else self.along(bias, y)
        if self.drops:
            seen = self.dropout(x)
            return y + ((c - 1) * (base(seen) - b) + c * self.change(seen)).to(y.dtype)
        return (c * (y + self.change(x)) + (1 - c) * b).to(y.dtype)

    def merge(self, W: Any) -> dict[str, Tensor]:
        whole = self.matrix(W["weight"]).to(self.A.dtype) + self.delta()
        c = self.gain(lengths(whole.detach(), self.A.dtype))
        return {"weight": self.shaped(c[:, None] * whole, W["weight"]).to(W["weight"].dtype)}


class DecomposedLinear(Decomposed, LowRank):
    """On a linear layer."""


class DecomposedConv(Decomposed, LowRankConv):
    """On a 2-d convolution."""

    def along(self, rows: Tensor, y: Tensor) -> Tensor:
        return rows.view(-1, 1, 1)


class DecomposedEmbedding(Decomposed, LowRankEmbedding):
    """On an embedding."""

    def forward(self, base: Any, ids: Tensor) -> Tensor:
        return Decomposed.forward(self, base, ids) if plain_table(self, base) else Adapter.forward(self, base, ids)


def bias_of(base: Any) -> Tensor | None:
    """The host's bias with the adapters below on."""
    return base["bias"] if getattr(base.host, "bias", None) is not None else None


def lengths(M: Tensor, dtype: torch.dtype) -> Tensor:
    """The norms of a matrix's rows."""
    return torch.linalg.vector_norm(M, dim=1, dtype=dtype)
