"""What an extraction found: the spectrum of each change, what was kept of it, what was left out, what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

BARS = "▁▂▃▄▅▆▇█"
SHOWN = 16  # singular values of a module in the plain form


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The change of one module's weight: its singular values, falling, and the rank that was kept.

    `relative` is ‖ΔW‖/‖W‖.
    """

    path: str
    shape: tuple[int, ...]
    values: Tensor
    rank: int
    relative: float

    @property
    def energy(self) -> float:
        """Σ σ² of the change: its squared Frobenius norm."""
        return float(self.values.double().square().sum())

    @property
    def kept(self) -> float:
        """The share of the energy in the first `rank` directions."""
        return self.share(self.rank)

    def share(self, rank: int) -> float:
        return float(self.values[:rank].double().square().sum()) / self.energy

    def rank_for(self, share: float) -> int:
        """The least rank that keeps this share of the energy."""
        sums = self.values.double().square().cumsum(0)
        return min(int((sums < share * sums[-1]).sum()) + 1, len(sums))

    def bars(self, width: int = SHOWN) -> str:
        """The first singular values as bars, the largest one full."""
        first = self.values[:width] / self.values[0]
        return "".join(BARS[min(int(v * len(BARS)), len(BARS) - 1)] for v in first.tolist())

    def to_dict(self) -> dict[str, Any]:
        return {
            "module": self.path, "shape": list(self.shape), "rank": self.rank, "relative": self.relative,
            "energy": self.energy, "kept": self.kept, "rank_90": self.rank_for(0.9), "rank_99": self.rank_for(0.99),
            "singular_values": self.values[:SHOWN].tolist(),
        }  # fmt: skip


@dataclass(frozen=True)
class Left:
    """A tensor that changed and that a LoRA cannot hold; `relative` is ‖Δ‖/‖base‖."""

    name: str
    relative: float


@dataclass(frozen=True)
class Measured:
    """On the batches given, against the tuned model: mean |difference| of logits and the share of equal argmaxes of the
    extracted one and of the base; the losses where the batches have labels."""

    rows: int
    difference: float
    base_difference: float
    agreement: float
    base_agreement: float
    loss: float | None = None
    base_loss: float | None = None
    tuned_loss: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Extracted:
    """`model` is the base with the LoRA `name` on it; `head` says whether the tuned model's task head came along."""

    model: nn.Module
    name: str
    spectra: Sequence[Spectrum]
    left: Sequence[Left]
    head: bool
    parameters: int
    measured: Measured | None = field(default=None)

    @property
    def kept(self) -> float:
        """The share of the energy of all changes of weights that the LoRA holds."""
        return sum(s.kept * s.energy for s in self.spectra) / sum(s.energy for s in self.spectra)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kept": self.kept, "parameters": self.parameters, "head": self.head,
            "modules": [s.to_dict() for s in self.spectra],
            "left": [{"tensor": t.name, "relative": t.relative} for t in self.left],
            "measured": None if self.measured is None else vars(self.measured),
        }  # fmt: skip

    def __repr__(self) -> str:
        wide = max(len(s.path) for s in self.spectra)
        lines = [
            f"kept {self.kept:.1%} of the change in {self.parameters:,} parameters; left out: {len(self.left)} tensors"
        ]
        lines += [
            f"  {s.path:<{wide}}  rank {s.rank:>3}  kept {s.kept:6.1%}  90% at {s.rank_for(0.9):>4}  {s.bars()}"
            for s in self.spectra
        ]
        return "\n".join(lines)
