"""Slices of fused projections, and Conv1D: a facade, so that a method sees rows, always (out, in), and learns of
neither.

c_attn  (d, 3d) Conv1D   ->  Part(query) (d, d), Part(key) (d, d), Part(value) (d, d)
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.base import Base, Once, read
from featherweight.core.encoded import like
from featherweight.core.host import frozen_class


def transposed(module: nn.Module) -> bool:
    """Whether the module keeps its weight as (in, out): transformers' Conv1D, known by its shape of class."""
    return conv1d(frozen_class(module)) and hasattr(module, "nf")


@cache
def conv1d(cls: Any) -> bool:
    return any(c.__name__ == "Conv1D" for c in cls.__mro__)


class Part:
    """Rows of a host, all of them where None; offers weight (out, in), bias (out,), in_features, out_features."""

    def __init__(self, host: nn.Module, rows: Tensor | None = None, flip: bool | None = None):
        self.host, self.rows = host, rows
        self.flip = transposed(host) if flip is None else flip

    def cut(self, name: str, W: Tensor) -> Tensor:
        """A tensor of the host -> these rows of it, (out, in)."""
        W = W.T if self.flip and name == "weight" else W
        return W if self.rows is None else W[self.rows.to(W.device)]

    def paste(self, name: str, W: Tensor, w: Tensor) -> Tensor:
        """A tensor of the host with these rows replaced."""
        flip = self.flip and name == "weight"
        if self.rows is None:
            return w.T if flip else w
        out = (W.T if flip else W).index_copy(0, self.rows.to(W.device), w.to(W.dtype))
        return out.T if flip else out

    @property
    def weight(self) -> Tensor:
        return self.cut("weight", read(self.host, "weight"))

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.host, "bias", None)
        return None if bias is None else self.cut("bias", bias)

    @property
    def out_features(self) -> int:
        return int(like(self.host).shape[1 if self.flip else 0]) if self.rows is None else len(self.rows)

    @property
    def in_features(self) -> int:
        return int(like(self.host).shape[0 if self.flip else 1])


@like.register(Part)
def like_cut(part: Part, name: str = "weight") -> Tensor:
    W = like(part.host, name)
    W = W.T if part.flip and name == "weight" else W
    return W if part.rows is None else W[:1].expand(len(part.rows), *W.shape[1:])


class PartBase:
    """What an adapter on a part sees as its base: the host's output and tensors, cut to the rows."""

    def __init__(self, base: Base, part: Part):
        self.base, self.part = base, part
        self.host = part

    def __call__(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y if self.part.rows is None else y.index_select(-1, self.part.rows.to(y.device))

    def __getitem__(self, name: str) -> Tensor:
        return self.part.cut(name, self.base[name])

    def using(self, weights: dict[str, Tensor]) -> Callable[..., Any]:
        whole = {n: self.part.paste(n, self.base[n], w) for n, w in weights.items()}
        return lambda x: PartBase(self.base.using(whole), self.part)(x)  # type: ignore[arg-type]


class Parts(Adapter):
    """Adapters on parts of one host, by role; the whole of a Conv1D is the one part `whole`."""

    def __init__(self, parts: Mapping[str, Part], made: Mapping[str, Adapter]):
        super().__init__()
        self.rows = {role: part.rows for role, part in parts.items()}
        self.flip = any(part.flip for part in parts.values())
        self.of = nn.ModuleDict(made)

    def forward(self, base: Base, x: Tensor) -> Tensor:
        y = base(x)
        once = Once(base, (x,), y)  # the host is called once while the parts ask for this very x
        for role, rows in self.rows.items():
            out = self.of[role](PartBase(once, Part(base.host, rows, self.flip)), x)
            y = out if rows is None else y.index_copy(-1, rows.to(y.device), out)
        return y

    def merge(self, W: Any) -> dict[str, Tensor]:
        merged: dict[str, Tensor] = {}
        for role, rows in self.rows.items():
            part = Part(W.host, rows, self.flip)
            for name, w in self.of[role].merge(PartBase(W, part)).items():  # type: ignore[operator]
                merged[name] = part.paste(name, merged.get(name, W[name]), w)
        return merged

    def rounding(self, W: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        for role, rows in self.rows.items():
            adapter: Any = self.of[role]
            if rows is None:
                W = adapter.rounding(W, rounded)
            else:
                at = rows.to(W.device)
                W = W.index_copy(
                    0, at, adapter.rounding(W[at], lambda w, W=W, at=at: rounded(W.index_copy(0, at, w))[at])
                )
        return W

    @property
    def folds(self) -> bool:
        return all(a.folds for a in self.of.values())

    def learn(self, on: bool) -> None:
        for adapter in self.of.values():
            adapter.learn(on)  # type: ignore[operator]

    def added(self) -> int:
        return sum(a.added() for a in self.of.values())  # type: ignore[operator]


def spread(rows: list[range]) -> Tensor:
    """Row numbers of several ranges, as a tensor (n,)."""
    return torch.cat([torch.arange(r.start, r.stop) for r in rows])
