"""LoRA: Low-Rank Adaptation.

    h = W x + s · B A x           A (r, in), B (out, r), s = α/r   (α/√r when rank-stabilized)

          x ──┬── W (frozen) ──┬── h
              └─ drop ─ A ─ B ─┘        r ≪ in, out;  r(in + out) parameters per matrix

B starts at 0, so the start is the identity; A is Kaiming-uniform with a = √5 (the released code) or Gaussian with
deviation 1/r (the paper's text). Embeddings: A (r, V) = 0, B (H, r) ~ N(0, 1). Convolutions: A keeps the kernel, B is
1 × 1. Merge: W + s B A.
Other starts: `pissa`, `olora` (h = W x + s (B A − B₀ A₀) x from factors of W; W itself is never changed), `eva` (A from
the inputs of the layer, ranks shared out anew), `loftq` (from what quantizing W loses), `orthogonal` (orthonormal rows
of A).
LoRA-FA, `freeze_A`: A stays, r · out parameters, and only A x is kept for the backward pass in place of x.
LoRA+, `lr_ratio` λ: B's rate is λ times A's (the paper: 16). Embeddings, whose zero factor is A, and DoRA's magnitudes
keep the plain rate.
The full-rank limit: with A frozen and orthonormal, r = in, s = 1 and plain SGD, s B A moves by −η G Aᵀ A = −η G: LoRA
follows full fine-tuning step by step. Nowhere else does it: of lower rank it sees a projection of G, A that trains
adds terms of second order, and AdamW rescales B's entries, not W's.
Source: Hu et al. 2021, arXiv:2106.09685; rank-stabilized scale: Kalajdzievski 2023, arXiv:2312.03732; LoRA-FA: Zhang et
al. 2023, arXiv:2308.03303; LoRA+: Hayou, Ghosh and Yu 2024, arXiv:2402.12354. Starts: PiSSA: Meng, Wang and Zhang
2024, arXiv:2404.02948; OLoRA: Büyükakyüz 2024, arXiv:2406.01775; EVA: Paischer et al. 2024, arXiv:2410.07170; LoftQ: Li
et al. 2023, arXiv:2310.08659.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.encoded import like
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Adapted, Method
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve
from featherweight.methods.lowrank import LowRank, LowRankConv, LowRankEmbedding, added
from featherweight.methods.shifted import ShiftedConv, ShiftedEmbedding, ShiftedLinear
from featherweight.methods.starts import STARTS

__all__ = ["LoRA", "LowRank", "LowRankConv", "LowRankEmbedding", "added", "pick"]

KINDS: dict[str, type[LowRank]] = {"linear": LowRank, "conv": LowRankConv, "embedding": LowRankEmbedding}
MOVED: dict[str, type[LowRank]] = {"linear": ShiftedLinear, "conv": ShiftedConv, "embedding": ShiftedEmbedding}


@dataclass(frozen=True, repr=False)
class LoRA(Method):
    """`alpha=None` means 2 × rank.

    Patterns map a regex (matched at the end of a path, at a dot) to another rank or alpha; a rank of 0 leaves the
    place out. `init` is one of kaiming, gaussian, pissa, olora, eva, orthogonal, loftq and loftq-2 to loftq-5 (rounds).
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: Targets = ("query", "value")
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init: str = "kaiming"
    rank_stabilized: bool = False
    freeze_A: bool = False  # noqa: N815
    lr_ratio: float = 1.0

    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    place: ClassVar[str] = "linear layers, embeddings, convolutions"
    lr: ClassVar[float] = 5e-4
    lr_source: ClassVar[str] = "Hu et al. 2021: 2e-4 to 5e-4 on GLUE"

    @property
    def rounded(self) -> bool:  # type: ignore[override]
        """Whether the start is LoftQ's."""
        return self.init in STARTS and STARTS[self.init].rounded

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        found = resolve(model, self.targets, ("linear", "conv", "embedding"))
        return [s for s in found if self.rank_at(s) != 0]

    def rank_at(self, site: Site) -> int:
        return int(pick(self.rank_pattern, site, self.rank))

    def alpha_at(self, site: Site) -> float:
        return float(pick(self.alpha_pattern, site, 2 * self.rank if self.alpha is None else self.alpha))

    def build(self, site: Site, shared: Any) -> Adapter:
        rank, alpha = self.rank_at(site), self.alpha_at(site)
        self.check(site, rank, alpha)
        scale = alpha / (rank**0.5 if self.rank_stabilized else rank)
        start = STARTS[self.init]
        adapter = self.kinds(start.moved)[site.kind](site.host, rank, scale, self.dropout, self.freeze_A)
        start.fill(adapter, site.host)
        return adapter

    def kinds(self, moved: bool) -> Mapping[str, type[LowRank]]:
        """The adapter for each kind of host."""
        return MOVED if moved else KINDS

    def check(self, site: Site, rank: int, alpha: float) -> None:
        weight = like(site.host)
        most = min(weight.shape[0], weight.shape[1:].numel())
        groups = vars(site.module).get("groups", 1)
        start = STARTS.get(self.init)
        wrong = []
        if not 1 <= rank <= most:
            sides = f"1 to {most}, the smaller side of {tuple(weight.shape)}"
            wrong.append(Problem("rank out of range", f"{site}: method.rank", sides, str(rank)))
        if start is None:
            wrong.append(Problem("unknown init", "method.init", " or ".join(STARTS), repr(self.init)))
        elif site.kind not in start.kinds:
            fix = f"leave it out of the targets: {self.init} reads the inputs of {' and '.join(start.kinds)} layers"
            wrong.append(Problem("an init that is not to be had here", f"{site}: method.init", got=self.init, fix=fix))
        elif start.moved and alpha <= 0:
            wrong.append(
                Problem(f"{self.init} divides by the scale", f"{site}: method.alpha", "alpha > 0", f"{alpha:g}")
            )
        if not 0 <= self.dropout < 1:
            wrong.append(Problem("dropout out of range", "method.dropout", "0 <= p < 1", str(self.dropout)))
        if self.lr_ratio <= 0:
            wrong.append(Problem("rate of B out of range", "method.lr_ratio", "a number > 0", str(self.lr_ratio)))
        if self.freeze_A and site.kind == "embedding" and not (start and start.moved):
            fix = "leave the embedding out of the targets, or freeze_A=False"
            wrong.append(
                Problem("an embedding's A starts at 0: frozen, it never learns", f"{site}: method.freeze_A", fix=fix)
            )
        if groups != 1:
            wrong.append(Problem("a grouped convolution has no low-rank form here", str(site), "groups=1", str(groups)))
        raise_all(wrong)

    def prepare(self, model: nn.Module, adapters: Adapted, batches: Iterable[Mapping[str, Tensor]]) -> None:
        start = STARTS[self.init].prepare
        if start is not None:
            start(self, model, adapters, batches)

    def groups(self, adapters: Adapted, lr: float) -> list[dict[str, Any]]:
        """LoRA+: the B of linear layers and convolutions apart, at `lr_ratio` times the rate."""
        usual = super().groups(adapters, lr)
        if self.lr_ratio == 1:
            return usual
        low = [m for a in adapters.values() for m in a.modules() if isinstance(m, LowRank)]
        fast = {id(m.B) for m in low if not isinstance(m, LowRankEmbedding)}
        slow = [g | {"params": [p for p in g["params"] if id(p) not in fast]} for g in usual]
        split = [g | {"params": [p for p in g["params"] if id(p) in fast], "lr": lr * self.lr_ratio} for g in usual]
        return [g for g in (*slow, *split) if g["params"]]


def pick(pattern: Mapping[str, Any], site: Site | str, usual: Any) -> Any:
    """The first pattern that matches the end of the path at a dot, as PEFT does it; a slice is `path.role` too."""
    if not pattern:
        return usual
    paths = [site] if isinstance(site, str) else [site.path]
    if isinstance(site, Site) and site.rows is not None:
        paths.append(f"{site.path}.{site.role}")
    hits = (v for k, v in pattern.items() if any(re.fullmatch(rf"(?:.*\.)?(?:{k})", p) for p in paths))
    return next(hits, usual)
