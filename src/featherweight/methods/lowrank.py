"""The low-rank adapters: W + s B A on linear layers, convolutions and embeddings.

To all of them the weight is one matrix (out, in): a convolution's is C_out × (C_in · kernel), an embedding's H × V.
`A` and `B` are the factors that train, `factors()` what the change is computed from; the rank is A's first axis.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core.adapter import Adapter, resized
from featherweight.core.blank import blank
from featherweight.core.encoded import like
from featherweight.core.errors import InputError
from featherweight.core.host import frozen_class
from featherweight.core.replace import master


class LowRank(Adapter):
    """On a linear layer: lora_A.weight (r, in), lora_B.weight (out, r)."""

    rounds = 0  # of LoftQ, which starts when the host's weight becomes codes
    scale: float
    freeze_A: bool  # noqa: N815
    lora_A: Any  # noqa: N815  # PEFT's name
    lora_B: Any  # noqa: N815

    def __init__(self, host: Any, rank: int, scale: float, dropout: float = 0.0, freeze_A: bool = False):
        super().__init__()
        vars(self).update(scale=scale, freeze_A=freeze_A)  # a module's own way looks for parameters first
        self.dropout = self.noise(dropout)
        self.size(host, rank)

    def noise(self, dropout: float) -> nn.Module:
        return blank(nn.Dropout, dropout)

    @property
    def drops(self) -> float:
        """The probability to drop an input now: 0 where not training, and on an embedding."""
        return float(getattr(self.dropout, "p", 0.0)) if self.training else 0.0

    def size(self, host: Any, rank: int) -> None:
        """Make factors of this rank, without values."""
        (out, into), usual = (W := like(host)).shape, kind(W)
        self._modules["lora_A"] = blank(nn.Linear, into, rank, bias=False, **usual)
        self._modules["lora_B"] = blank(nn.Linear, rank, out, bias=False, **usual)

    @property
    def A(self) -> Tensor:
        return self.lora_A.weight

    @property
    def B(self) -> Tensor:
        return self.lora_B.weight

    @property
    def rank(self) -> int:  # of the change, as `factors()` has it
        return self.A.shape[0]

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) whose product, times the scale, is the change of the weight."""
        return self.A, self.B

    def delta(self) -> Tensor:
        """s B A, (out, in)."""
        A, B = self.factors()
        return self.scale * (B.flatten(1) @ A.flatten(1))

    def matrix(self, W: Tensor) -> Tensor:
        """The host's weight -> (out, in)."""
        return W

    def shaped(self, M: Tensor, W: Tensor) -> Tensor:
        """(out, in) -> the shape of the host's weight."""
        return M

    def change(self, x: Tensor) -> Tensor:
        """s B A x, in the adapter's dtype."""
        A, B = self.factors()
        return self.scale * F.linear(F.linear(x.to(A.dtype), A), B)

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y = base(x)
        return y + self.change(self.dropout(x)).to(y.dtype)

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {"weight": added(W["weight"], self.shaped(self.delta(), W["weight"]))}

    def rounding(self, W: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        from featherweight.methods.starts.loftq import loftq

        return loftq(self, W, rounded) if self.rounds else W

    def learn(self, on: bool) -> None:
        super().learn(on)
        if self.freeze_A:
            self.A.requires_grad_(False)


class LowRankConv(LowRank):
    """On a 2-d convolution: lora_A.weight (r, C_in, kh, kw), lora_B.weight (C_out, r, 1, 1)."""

    def size(self, host: Any, rank: int) -> None:
        shape = {k: getattr(host, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        usual = kind(host.weight)
        self.lora_A = blank(nn.Conv2d, host.in_channels, rank, bias=False, **shape, **usual)
        self.lora_B = blank(nn.Conv2d, rank, host.out_channels, 1, bias=False, **usual)

    def matrix(self, W: Tensor) -> Tensor:
        return W.flatten(1)

    def shaped(self, M: Tensor, W: Tensor) -> Tensor:
        return M.view(W.shape)

    def change(self, x: Tensor) -> Tensor:
        A, B = self.factors()
        return self.scale * F.conv2d(self.lora_A._conv_forward(x.to(A.dtype), A, None), B)


class LowRankEmbedding(LowRank):
    """On an embedding: lora_embedding_A (r, V), lora_embedding_B (H, r); dropout has no place here, as in PEFT."""

    def noise(self, dropout: float) -> nn.Module:
        return nn.Identity()

    def size(self, host: Any, rank: int) -> None:
        W = like(host)
        self.lora_embedding_A = nn.Parameter(torch.empty(rank, W.shape[0], **kind(W)))
        self.lora_embedding_B = nn.Parameter(torch.empty(W.shape[1], rank, **kind(W)))

    @property
    def A(self) -> Tensor:
        return self.lora_embedding_A

    @property
    def B(self) -> Tensor:
        return self.lora_embedding_B

    def matrix(self, W: Tensor) -> Tensor:
        return W.T

    def shaped(self, M: Tensor, W: Tensor) -> Tensor:
        return M.T

    def change(self, ids: Tensor) -> Tensor:
        A, B = self.factors()
        return self.scale * F.embedding(ids, A.T) @ B.T

    def forward(self, base: Any, *args: Any, **kwargs: Any) -> Any:  # positions of BART and OPT are called with more
        if plain_table(self, base) and len(args) == 1 and not kwargs:
            return super().forward(base, *args)
        return Adapter.forward(self, base, *args, **kwargs)


def plain_table(adapter: LowRankEmbedding, base: Any) -> bool:
    """Whether rows may be looked up apart from the table: scaled embeddings (Gemma, BART) go through the weight.
    Raises InputError where the table was resized under the adapter.
    """
    table, cls = like(base.host), frozen_class(base.host)
    if table.shape[0] != adapter.A.shape[1]:
        raise InputError(resized("weight", table, adapter.A.T @ adapter.B.T))
    return getattr(cls, "plain", cls) is nn.Embedding  # a table of codes looks its rows up likewise


def kind(weight: Tensor) -> dict[str, Any]:
    """The dtype and device of trainable tensors beside a weight."""
    return {"dtype": master(weight.dtype), "device": weight.device}


def added(W: Tensor, delta: Tensor) -> Tensor:
    """W + Δ in the wider of the two dtypes, cast once."""
    return (W.to(delta.dtype) + delta).to(W.dtype)
