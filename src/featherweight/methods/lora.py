"""LoRA: Low-Rank Adaptation.

    h = W x + s · B A x           A (r, in), B (out, r), s = α/r   (α/√r when rank-stabilized)

          x ──┬── W (frozen) ──┬── h
              └─ drop ─ A ─ B ─┘        r ≪ in, out;  r(in + out) parameters per matrix

B starts at 0, so the start is the identity; A is Kaiming-uniform with a = √5 (the released code) or Gaussian with
deviation 1/r (the paper's text). Embeddings: A (r, V) = 0, B (H, r) ~ N(0, 1). Convolutions: A keeps the kernel, B is
1 × 1. Merge: W + s B A.
Source: Hu et al. 2021, arXiv:2106.09685; rank-stabilized scale: Kalajdzievski 2023, arXiv:2312.03732.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core.adapter import Adapter, resized
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import frozen_class
from featherweight.core.method import Method
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve

INITS = ("kaiming", "gaussian")


@dataclass(frozen=True, repr=False)
class LoRA(Method):
    """`alpha=None` means 2 × rank.

    Patterns map a regex (matched at the end of a path, at a dot) to another rank or alpha.
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: Targets = ("query", "value")
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init: str = "kaiming"
    rank_stabilized: bool = False

    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    place: ClassVar[str] = "linear layers, embeddings, convolutions"
    lr: ClassVar[float] = 5e-4
    lr_source: ClassVar[str] = "Hu et al. 2021: 2e-4 to 5e-4 on GLUE"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        return resolve(model, self.targets, ("linear", "conv", "embedding"))

    def build(self, site: Site, shared: Any) -> Adapter:
        rank = int(pick(self.rank_pattern, site.path, self.rank))
        alpha = float(pick(self.alpha_pattern, site.path, 2 * self.rank if self.alpha is None else self.alpha))
        self.check(site, rank)
        scale = alpha / (rank**0.5 if self.rank_stabilized else rank)
        return {"linear": LowRank, "conv": LowRankConv, "embedding": LowRankEmbedding}[site.kind](
            site.host, rank, scale, self.dropout, self.init
        )

    def check(self, site: Site, rank: int) -> None:
        weight = site.host.weight
        most = min(weight.shape[0], weight[0].numel())
        groups = getattr(site.module, "groups", 1)
        wrong = []
        if not 1 <= rank <= most:
            sides = f"1 to {most}, the smaller side of {tuple(weight.shape)}"
            wrong.append(Problem("rank out of range", f"{site}: method.rank", sides, str(rank)))
        if self.init not in INITS:
            wrong.append(Problem("unknown init", "method.init", " or ".join(INITS), repr(self.init)))
        if not 0 <= self.dropout < 1:
            wrong.append(Problem("dropout out of range", "method.dropout", "0 <= p < 1", str(self.dropout)))
        if groups != 1:
            wrong.append(Problem("a grouped convolution has no low-rank form here", str(site), "groups=1", str(groups)))
        raise_all(wrong)


def pick(pattern: Mapping[str, Any], path: str, usual: Any) -> Any:
    """The first pattern that matches the end of the path at a dot, as PEFT does it."""
    return next((v for k, v in pattern.items() if re.fullmatch(rf"(?:.*\.)?(?:{k})", path)), usual)


def start(A: Tensor, rank: int, init: str) -> None:
    nn.init.kaiming_uniform_(A, a=5**0.5) if init == "kaiming" else nn.init.normal_(A, std=1 / rank)


class LowRank(Adapter):
    """On a linear layer: lora_A.weight (r, in), lora_B.weight (out, r)."""

    def __init__(self, host: Any, rank: int, scale: float, dropout: float, init: str):
        super().__init__()
        out, into = host.weight.shape
        kind: dict[str, Any] = {"bias": False, "dtype": master(host.weight.dtype), "device": host.weight.device}
        self.lora_A = nn.utils.skip_init(nn.Linear, into, rank, **kind)
        self.lora_B = nn.utils.skip_init(nn.Linear, rank, out, **kind)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        start(self.lora_A.weight, rank, init)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y = base(x)
        inner = self.dropout(x).to(self.lora_A.weight.dtype)  # (..., in)
        return y + (self.scale * self.lora_B(self.lora_A(inner))).to(y.dtype)

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {"weight": added(W["weight"], self.scale * (self.lora_B.weight @ self.lora_A.weight))}


class LowRankConv(Adapter):
    """On a 2-d convolution: lora_A.weight (r, C_in, kh, kw), lora_B.weight (C_out, r, 1, 1)."""

    def __init__(self, host: Any, rank: int, scale: float, dropout: float, init: str):
        super().__init__()
        kind: dict[str, Any] = {"bias": False, "dtype": master(host.weight.dtype), "device": host.weight.device}
        shape = {k: getattr(host, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        self.lora_A = nn.utils.skip_init(nn.Conv2d, host.in_channels, rank, **shape, **kind)
        self.lora_B = nn.utils.skip_init(nn.Conv2d, rank, host.out_channels, 1, **kind)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        start(self.lora_A.weight, rank, init)
        nn.init.zeros_(self.lora_B.weight)

    forward = LowRank.forward

    def merge(self, W: Any) -> dict[str, Tensor]:
        delta = torch.einsum("or,rikl->oikl", self.lora_B.weight[:, :, 0, 0], self.lora_A.weight)
        return {"weight": added(W["weight"], self.scale * delta)}


class LowRankEmbedding(Adapter):
    """On an embedding: lora_embedding_A (r, V), lora_embedding_B (H, r); dropout has no place here, as in PEFT."""

    def __init__(self, host: Any, rank: int, scale: float, dropout: float, init: str):
        super().__init__()
        kind: dict[str, Any] = {"dtype": master(host.weight.dtype), "device": host.weight.device}
        self.lora_embedding_A = nn.Parameter(torch.zeros(rank, host.num_embeddings, **kind))
        self.lora_embedding_B = nn.Parameter(torch.randn(host.embedding_dim, rank, **kind))
        self.scale = scale

    def forward(self, base: Any, ids: Tensor) -> Tensor:
        table = base.host.weight
        if table.shape[0] != self.lora_embedding_A.shape[1]:
            raise InputError(resized("weight", table, self.lora_embedding_A.T @ self.lora_embedding_B.T))
        if frozen_class(base.host) is not nn.Embedding:  # scaled embeddings (Gemma, BART): through the weight
            return super().forward(base, ids)
        y = base(ids)
        low = F.embedding(ids, self.lora_embedding_A.T)  # (..., r)
        return y + (self.scale * low @ self.lora_embedding_B.T).to(y.dtype)

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {"weight": added(W["weight"], self.scale * (self.lora_embedding_B @ self.lora_embedding_A).T)}


def added(W: Tensor, delta: Tensor) -> Tensor:
    """W + Δ in the wider of the two dtypes, cast once."""
    return (W.to(delta.dtype) + delta).to(W.dtype)
