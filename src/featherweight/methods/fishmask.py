"""FishMask: the k parameters that the data say most about, and no other.

    F̂_j = 1/m Σ_i (∂ log p(y_i | x_i; θ) / ∂θ_j)²        θ' = θ + S v        k = ⌊ρ N⌋ values v, one gradient each

F̂ is the diagonal of the empirical Fisher information over m samples, one by one (a batch's gradient would square a
mean); S puts v at the k largest F̂ of all N parameters of the trunk. v starts at 0: the identity. Only v exists for
the optimizer, so its moments and decay cannot touch another weight. Until data are seen (`fw.train` shows them,
`fw.prepare` otherwise) the k places are spread evenly. Merge: θ + S v, exact. Stored: positions and v.
Source: Sung, Nair and Raffel 2021, "Training neural networks with fixed sparse masks", arXiv:2111.09839.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Adapted, Method
from featherweight.core.part import Parts
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.targets import Targets
from featherweight.methods.fisher import fisher, threshold
from featherweight.methods.trunk import tensors, trunk


@dataclass(frozen=True, repr=False)
class FishMask(Method):
    """`density` is ρ; `samples` is m (None: every row that is given); `targets` narrows the trunk."""

    density: float = 0.005
    samples: int | None = 1024
    targets: Targets = "all"

    paper: ClassVar[str] = "Sung et al. 2021, arXiv:2111.09839"
    place: ClassVar[str] = "the k most informative parameters of the trunk"
    per_row: ClassVar[bool] = False
    lr: ClassVar[float] = 3e-4
    lr_source: ClassVar[str] = "Liu et al. 2022 (T-Few), 1,500 steps"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        wrong = []
        if not 0 < self.density <= 1:
            wrong.append(Problem("density out of range", "method.density", "0 < ρ <= 1", repr(self.density)))
        if self.samples is not None and self.samples < 1:
            wrong.append(Problem("too few samples", "method.samples", "1 or more, or None for all", repr(self.samples)))
        raise_all(wrong)
        return trunk(model, self.targets)

    def shared(self, model: nn.Module) -> dict[Hashable, "Chosen"]:
        """One `Chosen` for each tensor of the trunk, its share of the k places spread evenly over it."""
        found = {key: W for site in self.hosts(model) for key, W in tensors(site).values()}
        made, before = {}, 0
        for key, W in found.items():
            n = self.budget(before + W.numel()) - self.budget(before)
            made[key] = Chosen(W, n)
            before += W.numel()
        if not self.budget(before):
            fix = f"raise it to 1/{before} or more"
            raise_all([Problem("no parameter is chosen", "method.density", got=repr(self.density), fix=fix)])
        return made

    def budget(self, size: int) -> int:
        """⌊ρ N⌋, with ρ taken as the decimal it is written as."""
        return int(Fraction(str(self.density)) * size)

    def build(self, site: Site, shared: dict[Hashable, "Chosen"]) -> Adapter:
        return SparseDelta({name: shared[key] for name, (key, _) in tensors(site).items()})

    def prepare(self, model: nn.Module, adapters: Adapted, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Choose the places; what has been trained keeps its own."""
        flat = [p for a in adapters.values() for p in (a.of.values() if isinstance(a, Parts) else [a])]
        own = [a for a in flat if isinstance(a, SparseDelta)]
        chosen = list({id(c): c for a in own for c in a.chosen.values()}.values())
        if any(bool(c.values.any()) for c in chosen):
            return
        scores = fisher(model, own, batches, self.samples)
        bar, room = threshold(scores, self.budget(sum(c.size for c in chosen)))
        for c, score in zip(chosen, scores, strict=True):
            level = (
                (score == bar).nonzero().flatten()[:room]
            )  # of equal scores the first ones, as many as there is room
            room -= len(level)
            c.put(torch.cat([(score > bar).nonzero().flatten(), level]).sort().values)
        for a in own:
            a.learn(a.learning)


class Chosen(nn.Module):
    """Places in one flattened tensor, `indices (k,)`, and what is added there, `values (k,)`."""

    indices: Tensor

    def __init__(self, W: Tensor, k: int):
        super().__init__()
        self.size = W.numel()
        kind = torch.int32 if self.size < 2**31 else torch.int64
        even = torch.arange(k, device=W.device) * self.size // max(k, 1)
        self.register_buffer("indices", even.to(kind))
        self.values = nn.Parameter(torch.zeros(k, dtype=master(W.dtype), device=W.device))

    def put(self, indices: Tensor) -> None:
        """Take other places, with nothing added yet."""
        self.indices = indices.to(self.indices)
        self.values.data = torch.zeros(len(indices)).to(self.values)

    def on(self, W: Tensor) -> Tensor:
        """W + S v, added in the wider of the two dtypes and cast once."""
        flat, at = W.reshape(-1), self.indices.long()
        return flat.index_copy(0, at, (flat[at].to(self.values.dtype) + self.values).to(W.dtype)).view(W.shape)


class SparseDelta(Adapter):
    """`<tensor>.indices` and `<tensor>.values` for each tensor of the host."""

    elastic = ("indices", "values")

    def __init__(self, chosen: Mapping[str, Chosen]):
        super().__init__()
        for name, c in chosen.items():
            self.add_module(name, c)
        self.learning = False
        self.probes: dict[int, Tensor] | None = None  # while F̂ is measured: stand-ins of whole tensors

    @property
    def chosen(self) -> dict[str, Chosen]:
        return {n: c for n, c in self.named_children() if isinstance(c, Chosen)}

    def forward(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        touched = self.merge(base)
        return base.using(touched)(*args, **kwargs) if touched else base(*args, **kwargs)

    def merge(self, W: Any) -> dict[str, Tensor]:
        if self.probes is not None:
            return {n: self.probe(c, W[n]) for n, c in self.chosen.items()}
        return {n: c.on(W[n]) for n, c in self.chosen.items() if len(c.values)}

    def probe(self, chosen: Chosen, W: Tensor) -> Tensor:
        assert self.probes is not None
        return self.probes.setdefault(id(chosen), W.detach().requires_grad_()).view(W.shape)

    def learn(self, on: bool) -> None:
        self.learning = on
        for c in self.chosen.values():
            c.values.requires_grad_(on and len(c.values) > 0)

    def misfits(self, prefix: str, tensors: Mapping[str, Tensor]) -> Iterable[Problem]:
        for name, c in self.chosen.items():
            at, v = (tensors.get(f"{prefix}{name}.{part}") for part in self.elastic)
            if at is None or v is None:
                continue
            key = f"{prefix}{name}.indices"
            if len(at) != len(v):
                yield Problem("places and values differ in number", key, str(len(v)), str(len(at)))
            elif len(at) and not (int(at.min()) >= 0 and int(at.max()) < c.size and bool((at.diff() > 0).all())):
                yield Problem("not places in the tensor", key, f"rising numbers from 0 to {c.size - 1}",
                              f"{int(at.min())} to {int(at.max())}")  # fmt: skip

    def added(self) -> int:
        return 0
