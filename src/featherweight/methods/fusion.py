"""AdapterFusion: trained bottlenecks side by side, mixed by attention in every place.

    y = … + Σᵢ pᵢ V gᵢ(x)      p = softmaxᵢ( (Q q + b_q)ᵀ (K gᵢ(x) + b_k) )      i = the adapters named in `of`

The places, what they read (x) and where they add are those of the fused adapters; the query q is x too: the sublayer's
output in Houlsby's places, the normalized sum in Pfeiffer's. Q, K (d, d) with bias, V (d, d) without: 3 d² + 2 d
parameters per place, the only ones that train. V starts at the identity (1e-6 beside the diagonal), Q and K at
N(0, 0.02), and λ Σ (I − V)² holds V there. Not the identity at the start: it turns the mean of the adapters on. Cannot
be merged. The adapters in `of` stay as trained: attach or load them first (in a run `over`: --over a=FOLDER,b=FOLDER).
Training saves them beside the fusion, in folders of their names, and loading it loads them.
Source: Pfeiffer et al. 2020, "AdapterFusion: non-destructive task composition", arXiv:2005.00247.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.core.method import Adapted, Method
from featherweight.core.site import Site
from featherweight.core.state import adapters
from featherweight.core.switch import switch_of
from featherweight.methods.bottleneck import Bottleneck, Inserted


@dataclass(frozen=True, repr=False)
class Fusion(Method):
    """Mix the bottleneck adapters `of` that are attached; all sit in the same places and train no norms."""

    of: tuple[str, ...] = ()
    regularization: float = 0.01
    dropout: float = 0.0

    paper: ClassVar[str] = "Pfeiffer et al. 2020, arXiv:2005.00247"
    place: ClassVar[str] = "over the bottlenecks it mixes"
    mergeable: ClassVar[bool] = False
    identity: ClassVar[bool] = False
    lr: ClassVar[float] = 5e-5
    lr_source: ClassVar[str] = "Pfeiffer et al. 2020: 5e-5, 10 epochs (unverified)"

    @property
    def needs(self) -> tuple[str, ...]:
        return self.of

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        attached = switch_of(model).attached
        raise_all(
            Problem("no adapter of this name to fuse", "method.of", got=repr(n), fix=absent(n, attached))
            for n in self.of
            if n not in attached
        )
        if len(set(self.of)) < 2:
            raise InputError(Problem("nothing to fuse", "method.of", "two or more different names", repr(self.of)))
        found = {n: fusible(model, n) for n in self.of}
        first = found[self.of[0]]
        raise_all(
            Problem("sits in other places", f"method.of: {n}", f"{listed(list(first), 3)}", f"{listed(list(on), 3)}")
            for n, on in found.items()
            if {p: a.law.__name__ for p, a in on.items()} != {p: a.law.__name__ for p, a in first.items()}
        )
        modules = dict(model.named_modules())
        return [Fused(path, modules[path]) for path in first]

    def build(self, site: Site, shared: Any) -> Adapter:
        one = site.module.adapters[self.of[0]]  # type: ignore[index]
        return Mixed(one, self.of, self.dropout) if isinstance(one, Bottleneck) else Together(self.of)

    def penalty(self, adapters: Adapted) -> Tensor | None:
        values = [a.value.weight for a in adapters.values() if isinstance(a, Mixed)]
        drift = [(V - torch.eye(len(V), dtype=V.dtype, device=V.device)).square().sum() for V in values]
        return self.regularization * torch.stack(drift).sum() if self.regularization else None


def absent(name: str, attached: Mapping[str, Any]) -> str:
    """The way to an adapter that is not there."""
    return did_you_mean(name, attached) if attached else f"load it first: fw.load, or over={name}=FOLDER in training"


class Fused(Site):
    """A host of bottlenecks; none of them looks at its weight."""

    @property
    def whole(self) -> bool:
        return True


def fusible(model: nn.Module, name: str) -> dict[str, Inserted]:
    """The bottlenecks (and taps) of an adapter by host. Raises InputError for one that has none, or trains norms."""
    found = {p: a for p, a in adapters(model, name).items() if isinstance(a, Inserted)}
    method = switch_of(model).attached[name].method
    if not found:
        raise InputError(Problem("not made of bottlenecks", f"method.of: {name}", got=repr(method)))
    if getattr(method, "norms", False):
        fix = "train it with norms=False: adapters cannot share a norm that each has its own of"
        raise InputError(Problem("trains norms too", f"method.of: {name}", got=repr(method), fix=fix))
    return found


class Together(Adapter):
    """Runs the law of the last adapter in `of`; on a tap's first layer that is all there is to do."""

    def __init__(self, of: tuple[str, ...]):
        super().__init__()
        self.of = of

    def forward(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        held = base.host.adapters
        gone = [n for n in self.of if n not in held]
        raise_all(
            Problem("an adapter that is fused here was detached", got=repr(n), fix="attach it again") for n in gone
        )
        each = [held[n] for n in self.of]
        return each[-1].law(base, lambda x: self.mix(x, [a.change(x) for a in each]), *args, **kwargs)

    def mix(self, x: Tensor, changes: list[Tensor]) -> Tensor:
        """One change of the fused adapters' n, (..., d); a tap's first layer adds nothing."""
        return torch.zeros_like(x)


class Mixed(Together):
    """query.weight, key.weight, value.weight (d, d), query.bias, key.bias (d,)."""

    def __init__(self, one: Bottleneck, of: tuple[str, ...], dropout: float):
        super().__init__(of)
        d, like = one.width, next(one.up.parameters())
        kind: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.query, self.key = nn.Linear(d, d, **kind), nn.Linear(d, d, **kind)
        self.value = nn.Linear(d, d, bias=False, **kind)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.value.weight.fill_(1e-6).fill_diagonal_(1.0)

    def mix(self, x: Tensor, changes: list[Tensor]) -> Tensor:
        """(..., d) and n of them -> (..., d)."""
        dtype = self.value.weight.dtype
        g = torch.stack(changes, -2).to(dtype)  # (..., n, d)
        scores = self.key(g) @ self.query(x.to(dtype)).unsqueeze(-1)  # (..., n, 1)
        weights = self.dropout(scores).softmax(-2)
        return (weights * self.value(g)).sum(-2).to(x.dtype)
