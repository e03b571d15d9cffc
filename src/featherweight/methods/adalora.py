"""AdaLoRA: a budget of ranks, given to the matrices that need them while training.

    h = W x + s · P diag(e) Q x        s = α/(r₀ + 1e-5)
    penalty   γ · mean over all P, Q of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F

Q (r₀, in) is `lora_A`, e (r₀, 1) `lora_E`, P (out, r₀) `lora_B`; e starts at 0 (so the start is the identity), P and Q
at N(0, 0.02). r₀ (in + out + 1) parameters per matrix. Every `every` steps the triplets (Pⱼ, eⱼ, Qⱼ) of all matrices
are ranked, and the e of those beyond the budget is set to 0:

    b(t)    n r₀ until `start`; n (r + (r₀ − r)(1 − u)³), u from 0 to 1; n r for the last `final` steps, the ranks fixed
    score   S(eⱼ) + mean S(Pⱼ) + mean S(Qⱼ),   S = Ī Ū,   I = |w ∂L/∂w|
    Ī ← β₁ Ī + (1 − β₁) I      Ū ← β₂ Ū + (1 − β₂) |I − Ī|

n matrices, r = `target_rank`. Merge: W + s P diag(e) Q. The paper squares the norms of the penalty and sums them; the
released code, PEFT and this file do not. The scale keeps r₀ after pruning, as in PEFT.
Source: Zhang et al. 2023, "Adaptive budget allocation for parameter-efficient fine-tuning", arXiv:2303.10512.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.method import Adapted, Method
from featherweight.core.site import Site
from featherweight.core.targets import Targets, resolve
from featherweight.methods.triplets import Triplets, prune, triplets


@dataclass(frozen=True, repr=False)
class AdaLoRA(Method):
    """`rank` is where every matrix starts, `target_rank` what they end with on average; `alpha=None` means 2 × rank.

    `start`, `final` and `every` are steps, or shares of the run where below 1. `rank_pattern` says of a place which of
    its ranks are kept: what a trained adapter's file records.
    """

    rank: int = 12
    target_rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: Targets = "linear"
    start: float = 0.1
    final: float = 0.5
    every: float = 0.001
    betas: tuple[float, float] = (0.85, 0.85)
    orthogonality: float = 0.5
    rank_pattern: Mapping[str, Sequence[bool]] = field(default_factory=dict)

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.10512"
    place: ClassVar[str] = "linear layers"
    lr: ClassVar[float] = 5e-3  # three small factors: short runs at the rate of the paper stand still
    lr_source: ClassVar[str] = "Zhang et al. 2023: 5e-4 to 2.2e-3 on GLUE, in far longer runs (unverified)"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        self.check()
        return resolve(model, self.targets, ("linear",))

    def check(self) -> None:
        share = sum(x for x in (self.start, self.final) if 0 <= x < 1)
        wrong = [
            (not 1 <= self.target_rank <= self.rank, "target_rank", f"1 to rank={self.rank}", self.target_rank),
            (not 0 <= self.dropout < 1, "dropout", "0 <= p < 1", self.dropout),
            (min(self.start, self.final) < 0 or share >= 1, "start", "start + final below the whole run", self.start),
            (self.every <= 0, "every", "steps, or a share of the run", self.every),
            (not all(0 < b < 1 for b in self.betas), "betas", "0 < β < 1", self.betas),
            (self.orthogonality < 0, "orthogonality", "0 or more", self.orthogonality),
        ]
        raise_all(Problem("out of range", f"method.{n}", want, str(got)) for bad, n, want, got in wrong if bad)

    def build(self, site: Site, shared: Any) -> Adapter:
        most = min(site.host.weight.shape)
        if not 1 <= self.rank <= most:
            sides = f"1 to {most}, the smaller side of {tuple(site.host.weight.shape)}"
            raise InputError(Problem("rank out of range", f"{site}: method.rank", sides, str(self.rank)))
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        mask = [bool(keep) for keep in self.rank_pattern.get(str(site), [True] * self.rank)]
        if len(mask) != self.rank:
            raise InputError(
                Problem(
                    "not a mask of the ranks", f"{site}: method.rank_pattern", f"{self.rank} entries", f"{len(mask)}"
                )
            )
        return Triplets(site.host, torch.tensor(mask), alpha / (self.rank + 1e-5), self.dropout)

    def penalty(self, adapters: Adapted) -> Tensor | None:
        far = [d for t in triplets(adapters).values() for d in t.departures()]
        return self.orthogonality * torch.stack(far).mean() if far and self.orthogonality else None

    def after_step(self, adapters: Adapted, step: int, total: int) -> None:
        start, final, every = self.schedule(total)
        made, end = list(triplets(adapters).values()), total - final
        if step < end:
            for t in made:
                t.observe(*self.betas)
            if step > start and step % every == 0:
                prune(made, self.budget(len(made), (step - start) / (end - start)))
        elif step == end:
            prune(made, self.target_rank * len(made))
            for t in made:
                t.forget()
        else:
            for t in made:
                t.hold()

    def schedule(self, total: int) -> tuple[int, int, int]:
        """(start, final, every) in steps. Raises InputError where they leave no step to prune in."""
        start, final, every = (round(x * total) if x < 1 else round(x) for x in (self.start, self.final, self.every))
        if start >= total - final or total - final < 2:  # no gradient is seen before the ranks are fixed
            raise InputError(
                Problem("no step is left to prune in", "method.start", f"start + final below {total} steps",
                        f"{start} + {final}", "train longer, or give shares of the run")
            )  # fmt: skip
        return start, final, max(1, every)

    def budget(self, matrices: int, done: float) -> int:
        """Ranks for all matrices together, `done` (0 to 1) of the way through the pruning."""
        first, last = matrices * self.rank, matrices * self.target_rank
        return int((first - last) * (1 - done) ** 3 + last)

    def recorded(self, adapters: Adapted) -> Self:
        masks = {at: t.used().tolist() for at, t in triplets(adapters).items()}
        return replace(self, rank_pattern={at: mask for at, mask in masks.items() if not all(mask)})
