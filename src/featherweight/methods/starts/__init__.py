"""Where low-rank factors start, by name: at random, from the weight, or from data.

A start fills the factors of a fresh adapter.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.methods.lowrank import LowRank, LowRankEmbedding
from featherweight.methods.shifted import Shifted
from featherweight.methods.starts import eva, loftq
from featherweight.methods.starts.olora import olora
from featherweight.methods.starts.pissa import pissa

Factors = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]  # W (out, in), rank, scale -> A (r, in), B (out, r)


@dataclass(frozen=True)
class Start:
    """`fill(adapter, host)` sets the factors of an adapter on a host; `moved`: both are other than 0.

    `prepare(method, model, adapters, batches)` goes on from data; `kinds` are the hosts it can be had on. `rounded`: it
    makes up for what one number format loses.
    """

    fill: Callable[[LowRank, Any], None]
    moved: bool = False
    prepare: Callable[[Any, nn.Module, Any, Any], None] | None = None
    kinds: tuple[str, ...] = ("linear", "conv", "embedding")
    rounded: bool = False


def drawn(draw: Callable[[Tensor], Any]) -> Callable[[LowRank, Any], None]:
    """A as drawn, B = 0; on embeddings A = 0 and B ~ N(0, 1)."""

    def fill(adapter: LowRank, host: Any) -> None:
        if _spared.get():
            return
        if isinstance(adapter, LowRankEmbedding):
            nn.init.zeros_(adapter.A)
            nn.init.normal_(adapter.B)
            return
        draw(adapter.A)
        nn.init.zeros_(adapter.B)

    return fill


def orthogonal(A: Tensor) -> None:
    """Orthonormal rows; over the kernel too on a convolution."""
    wide = nn.init.orthogonal_(torch.empty_like(A, dtype=torch.promote_types(A.dtype, torch.float32)))
    with torch.no_grad():
        A.copy_(wide)


_spared: ContextVar[bool] = ContextVar("spared", default=False)


@contextmanager
def spared() -> Iterator[None]:
    """Do without draws and decompositions: whatever is attached in here has its values overwritten at once."""
    token = _spared.set(True)
    try:
        yield
    finally:
        _spared.reset(token)


def sparing() -> bool:
    """Whether what is attached now has its values overwritten at once."""
    return _spared.get()


def moved(factors: Factors) -> Callable[[LowRank, Any], None]:
    """Start from factors of the weight, which itself is left alone: the change is counted from them."""

    def fill(adapter: LowRank, host: Any) -> None:
        assert isinstance(adapter, Shifted)
        M = adapter.matrix(host.weight.detach()).to(adapter.A.dtype)
        rank = adapter.A.shape[0]
        if _spared.get():
            adapter.begin(M.new_zeros(rank, M.shape[1]), M.new_zeros(M.shape[0], rank))
        else:
            adapter.begin(*factors(M, rank, adapter.scale))

    return fill


def waiting(rounds: int) -> Callable[[LowRank, Any], None]:
    """The identity until the host's weight becomes codes, or until `prepare`."""
    usual = drawn(lambda A: nn.init.kaiming_uniform_(A, a=5**0.5))

    def fill(adapter: LowRank, host: Any) -> None:
        adapter.rounds = rounds
        usual(adapter, host)

    return fill


STARTS: dict[str, Start] = {
    "kaiming": Start(drawn(lambda A: nn.init.kaiming_uniform_(A, a=5**0.5))),
    "gaussian": Start(drawn(lambda A: nn.init.normal_(A, std=1 / A.shape[0]))),
    "orthogonal": Start(drawn(orthogonal)),
    "pissa": Start(moved(pissa), moved=True),
    "olora": Start(moved(olora), moved=True),
    "eva": Start(drawn(lambda A: nn.init.kaiming_uniform_(A, a=5**0.5)), prepare=eva.prepare, kinds=("linear",)),
}
STARTS |= {
    "loftq" if rounds == 1 else f"loftq-{rounds}": Start(
        waiting(rounds), prepare=loftq.prepare, kinds=("linear", "embedding"), rounded=True
    )
    for rounds in range(1, 6)
}

__all__ = ["STARTS", "Start", "spared"]
