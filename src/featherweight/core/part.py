"""Slices of fused projections, and Conv1D: a facade, so that a method sees rows, always (out, in), and learns of
neither.

c_attn  (d, 3d) Conv1D   ->  Part(query) (d, d), Part(key) (d, d), Part(value) (d, d)
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core.adapter import Adapter
from featherweight.core.base import Base, read
from featherweight.core.blank import is_bare
from featherweight.core.encoded import encoded, like
from featherweight.core.host import frozen_class


def transposed(module: nn.Module) -> bool:
    """Whether the module keeps its weight as (in, out): transformers' Conv1D, known by its shape of class."""
    return conv1d(frozen_class(module)) and hasattr(module, "nf")


@cache
def conv1d(cls: Any) -> bool:
    return any(c.__name__ == "Conv1D" for c in cls.__mro__)


class Rows(NamedTuple):
    """Row numbers of a fused projection, in order; `first` where they lie together, and then nothing is gathered."""

    at: Tensor
    first: int | None

    @classmethod
    def of(cls, at: Tensor) -> "Rows":
        together = not is_bare(at) and len(at) > 0 and torch.equal(at, torch.arange(len(at)).to(at) + at[0])
        return cls(at, int(at[0]) if together else None)

    def cut(self, W: Tensor, dim: int) -> Tensor:
        """These rows of a tensor, a view of it where they lie together."""
        if self.first is None:
            return W.index_select(dim, self.at.to(W.device))
        return W.narrow(dim, self.first, len(self.at))

    def paste(self, W: Tensor, w: Tensor, dim: int) -> Tensor:
        """A copy of the tensor with these rows replaced."""
        if self.first is None:
            return W.index_copy(dim, self.at.to(W.device), w)
        return W.slice_scatter(w, dim, self.first, self.first + len(self.at))


class Part:
    """Rows of a host, all of them where None; offers weight (out, in), bias (out,), in_features, out_features."""

    def __init__(self, host: nn.Module, rows: Tensor | Rows | None = None, flip: bool | None = None):
        self.host = host
        self.rows = Rows.of(rows) if isinstance(rows, Tensor) else rows
        self.flip = transposed(host) if flip is None else flip

    def cut(self, name: str, W: Tensor) -> Tensor:
        """A tensor of the host -> these rows of it, (out, in)."""
        W = W.T if self.flip and name == "weight" else W
        return W if self.rows is None else self.rows.cut(W, 0)

    def paste(self, name: str, W: Tensor, w: Tensor) -> Tensor:
        """A tensor of the host with these rows replaced."""
        flip = self.flip and name == "weight"
        w = w.T if flip else w
        return w if self.rows is None else self.rows.paste(W, w.to(W.dtype), 1 if flip else 0)

    @property
    def weight(self) -> Tensor:
        return self.cut("weight", read(self.host, "weight"))

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.host, "bias", None)
        return None if bias is None else self.cut("bias", bias)

    @property
    def out_features(self) -> int:
        return int(like(self.host).shape[1 if self.flip else 0]) if self.rows is None else len(self.rows.at)

    @property
    def in_features(self) -> int:
        return int(like(self.host).shape[0 if self.flip else 1])


@like.register(Part)
def like_cut(part: Part, name: str = "weight") -> Tensor:
    W = like(part.host, name)
    W = W.T if part.flip and name == "weight" else W
    return W if part.rows is None else W[:1].expand(len(part.rows.at), *W.shape[1:])


class PartBase:
    """What an adapter on a part sees as its base: the host's output and tensors, cut to the rows.

    `known`, where given, is the answer to these very inputs: (x, y), y cut already. The answer to others x' is then
    y + W (x' − x) with the part's own rows of W, a fraction of the host's, and y to the bit where x' equals x.
    """

    def __init__(self, base: Base, part: Part, known: tuple[Tensor, Tensor] | None = None):
        self.base, self.part, self.known = base, part, known
        self.host = part

    def __call__(self, x: Tensor) -> Tensor:
        if self.known is not None:
            before, y = self.known
            if x is before:
                return y
            if x.dtype is before.dtype and self.multiplies():
                return y + F.linear(x - before, self["weight"]).to(y.dtype)
        y = self.base(x)
        return y if self.part.rows is None else self.part.rows.cut(y, -1)

    def multiplies(self) -> bool:
        """Whether a call is the host's own product with a weight in floating point, and no more. (What makes the host a
        Conv1D is asked once, by its part: a compiled graph cannot ask what is cached.)"""
        host = self.base.host
        return not self.base.below and (host.frozen_class is nn.Linear or self.part.flip) and not encoded(host)

    def __getitem__(self, name: str) -> Tensor:
        return self.part.cut(name, self.base[name])

    def using(self, weights: dict[str, Tensor]) -> Callable[..., Any]:
        whole = {n: self.part.paste(n, self.base[n], w) for n, w in weights.items()}
        return lambda x: PartBase(self.base.using(whole), self.part)(x)  # type: ignore[arg-type]


class Parts(Adapter):
    """Adapters on parts of one host, by role; the whole of a Conv1D is the one part `whole`.

    The host is called once: for the very x of the call where there are slices (what they ask beyond that is a product
    of theirs), over all that is rewritten where the parts have weight laws only, and for what its adapter asks where
    there is the whole.
    """

    def __init__(self, parts: Mapping[str, Part], made: Mapping[str, Adapter]):
        super().__init__()
        self.parts = {role: part.rows for role, part in parts.items()}
        self.flip = any(part.flip for part in parts.values())
        self.of = nn.ModuleDict(made)
        self.sizes = sections(self.parts, next(iter(parts.values())).host)

    @property
    def rows(self) -> dict[str, Tensor | None]:
        """Row numbers by role."""
        return {role: None if rows is None else rows.at for role, rows in self.parts.items()}

    def forward(self, base: Base, x: Tensor) -> Tensor:
        if self.rewrites:
            return super().forward(base, x)
        if list(self.parts) == ["whole"]:
            return self.of["whole"](PartBase(base, Part(base.host, None, self.flip)), x)
        y = base(x)
        cuts = self.cuts(y)
        changed = {
            role: self.of[role](PartBase(base, Part(base.host, rows, self.flip), (x, cuts[role])), x)
            for role, rows in self.parts.items()
        }
        return self.together(y, cuts | changed)

    def cuts(self, y: Tensor) -> dict[str, Tensor]:
        """The parts of an output, and what lies between them where each lies together; views then."""
        if self.sizes is not None:
            return dict(zip(self.sizes, y.split(list(self.sizes.values()), -1), strict=True))
        return {role: y if rows is None else rows.cut(y, -1) for role, rows in self.parts.items()}

    def together(self, y: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """The output with its parts replaced."""
        if self.sizes is not None:
            return torch.cat([part.to(y.dtype) for part in parts.values()], -1)
        for role, rows in self.parts.items():
            y = parts[role] if rows is None else rows.paste(y, parts[role], -1)
        return y

    @property
    def rewrites(self) -> bool:
        return all(a.rewrites for a in self.of.values())

    def merge(self, W: Any) -> dict[str, Tensor]:
        merged: dict[str, Tensor] = {}
        for role, rows in self.parts.items():
            part = Part(W.host, rows, self.flip)
            for name, w in self.of[role].merge(PartBase(W, part)).items():  # type: ignore[operator]
                merged[name] = part.paste(name, merged.get(name, W[name]), w)
        return merged

    def rounding(self, W: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        for role, rows in self.parts.items():
            adapter: Any = self.of[role]
            if rows is None:
                W = adapter.rounding(W, rounded)
            else:
                W = rows.paste(W, adapter.rounding(*within(W, rows, rounded)), 0)
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


def within(W: Tensor, rows: Rows, rounded: Callable[[Tensor], Tensor]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rows of a matrix, and what they are when they are rounded among the others."""
    return rows.cut(W, 0), lambda w: rows.cut(rounded(rows.paste(W, w, 0)), 0)


def sections(parts: Mapping[str, Rows | None], host: nn.Module) -> dict[str, int] | None:
    """How many outputs each part and each gap between them takes, in order; None where parts are not one piece each."""
    pieces = sorted((r.first, len(r.at), role) for role, r in parts.items() if r is not None and r.first is not None)
    if len(pieces) < len(parts):
        return None
    found: dict[str, int] = {}
    end = 0
    for first, count, role in [*pieces, (Part(host).out_features, 0, "")]:
        if first < end:
            return None
        found |= {f"before {role}": first - end, role: count}
        end = first + count
    return {role: count for role, count in found.items() if count}
