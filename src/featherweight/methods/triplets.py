"""AdaLoRA's adapter: triplets (Pⱼ, eⱼ, Qⱼ) whose importance is followed step by step, and pruned to a budget.

h = W x + s · P diag(e) Q x        S = Ī Ū for every number of P, e and Q (see `adalora.py`)
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.method import Adapted
from featherweight.core.replace import master
from featherweight.methods.lowrank import added

FACTORS = ("lora_A", "lora_B", "lora_E")


class Triplets(Adapter):
    """lora_A (r, in), lora_B (out, r), lora_E (r, 1); `kept` (r,) is the last allocation's mask."""

    kept: Tensor

    def __init__(self, host: Any, kept: Tensor, scale: float, dropout: float):
        super().__init__()
        (out, into), rank = host.weight.shape, len(kept)
        kind: dict[str, Any] = {"dtype": master(host.weight.dtype), "device": host.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, into, **kind).normal_(std=0.02))
        self.lora_B = nn.Parameter(torch.empty(out, rank, **kind).normal_(std=0.02))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, **kind))
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("kept", kept.to(host.weight.device))
        for name in FACTORS:  # what resumes a run, and is not saved for use
            for what in ("sensitivity", "uncertainty"):
                self.register_buffer(f"{what}_{name[-1]}", torch.zeros_like(getattr(self, name).data))

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y = base(x)
        low = self.dropout(x).to(self.lora_A.dtype) @ (self.lora_A * self.lora_E).T  # (..., r)
        return y + (self.scale * low @ self.lora_B.T).to(y.dtype)

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {"weight": added(W["weight"], self.scale * (self.lora_B @ (self.lora_A * self.lora_E)))}

    def departures(self) -> tuple[Tensor, Tensor]:
        """How far P and Q are from having orthonormal columns and rows."""
        P, Q = self.lora_B, self.lora_A
        one = torch.eye(len(Q), dtype=Q.dtype, device=Q.device)
        return torch.linalg.norm(P.T @ P - one), torch.linalg.norm(Q @ Q.T - one)

    @torch.no_grad()
    def observe(self, beta1: float, beta2: float) -> None:
        """Take this step's gradients into the smoothed sensitivities and their uncertainties."""
        for name in FACTORS:
            w = getattr(self, name)
            if w.grad is None:
                continue
            now = torch.nan_to_num((w * w.grad).abs(), 0.0, 0.0, 0.0)  # an fp16 step that overflowed says nothing
            mean, spread = getattr(self, f"sensitivity_{name[-1]}"), getattr(self, f"uncertainty_{name[-1]}")
            mean.copy_(beta1 * mean + (1 - beta1) * now)
            spread.copy_(beta2 * spread + (1 - beta2) * (now - mean).abs())

    def scores(self) -> Tensor:
        """(r,): how much each triplet matters."""
        A, B, E = (getattr(self, f"sensitivity_{n}") * getattr(self, f"uncertainty_{n}") for n in "ABE")
        return E.view(-1) + (A.mean(1) + B.mean(0))

    @torch.no_grad()
    def hold(self) -> None:
        self.lora_E.masked_fill_(~self.kept[:, None], 0.0)

    def forget(self) -> None:
        for name, buffer in self.named_buffers():
            if name != "kept":
                buffer.zero_()

    def used(self) -> Tensor:
        """Which triplets a file needs: the kept ones, and those that grew again since the last allocation."""
        return self.kept | (self.lora_E.detach().view(-1) != 0)


def triplets(adapters: Adapted) -> dict[str, Triplets]:
    """By place, those inside of fused projections too; a trained head is none."""
    found = {}
    for path, adapter in adapters.items():
        for name, module in adapter.named_modules():
            if isinstance(module, Triplets):
                role = name.rpartition(".")[2]
                found[path if role in ("", "whole") else f"{path}[{role}]"] = module
    return found


@torch.no_grad()
def prune(made: Iterable[Triplets], budget: int) -> None:
    """Keep the `budget` triplets that matter most (fewer where scores tie) and zero the singular values of the rest."""
    made = list(made)
    scores = [t.scores() for t in made]
    flat = torch.cat([s.to(scores[0].device) for s in scores])
    beyond = len(flat) - budget
    if beyond <= 0:
        return
    threshold = torch.kthvalue(flat, beyond).values
    for t, score in zip(made, scores, strict=True):
        t.kept.copy_(score > threshold.to(score.device))
        t.hold()
