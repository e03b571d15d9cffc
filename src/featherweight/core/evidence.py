"""What is left of an adapter once it is merged into a weight that is kept as codes.

    kept = ⟨Q(Ŵ + Δ) − Ŵ, Δ⟩ / ⟨Δ, Δ⟩        off = ‖Q(Ŵ + Δ) − (Ŵ + Δ)‖ / ‖Ŵ + Δ‖        change = ‖Δ‖ / ‖Ŵ‖
    noise = ‖Q(Ŵ + Δ) − (Ŵ + Δ)‖ / ‖Δ‖

Ŵ is the decoded weight, Δ the adapter's change, Q to encode and to decode. A small Δ rounds away: of 1 % in NF4 less
than 2 % is kept, of 10 % some 83 %. The merge into floating point keeps all of it, `off` is 0, but for what Q rounds
where it is a cast to 16 bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.base import read
from featherweight.core.encoded import encoded
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import hosts


@dataclass(frozen=True)
class Survival:
    """One tensor: the sizes that the ratios are made of, and the ratios."""

    where: str
    scheme: str
    weight: float  # ‖Ŵ‖²
    delta: float  # ‖Δ‖²
    along: float  # ⟨Q(Ŵ + Δ) − Ŵ, Δ⟩
    miss: float  # ‖Q(Ŵ + Δ) − (Ŵ + Δ)‖²
    whole: float  # ‖Ŵ + Δ‖²

    @property
    def change(self) -> float:
        return ratio(self.delta, self.weight) ** 0.5

    @property
    def kept(self) -> float:
        return ratio(self.along, self.delta, empty=1.0)

    @property
    def off(self) -> float:
        return ratio(self.miss, self.whole) ** 0.5

    @property
    def noise(self) -> float:
        return ratio(self.miss, self.delta) ** 0.5

    def __str__(self) -> str:
        return f"change {self.change:7.2%}  kept {self.kept:7.1%}  off {self.off:7.2%}  {self.where}  {self.scheme}"


@dataclass(frozen=True)
class MergeReport:
    """Every tensor that is encoded again, and all of them as one."""

    tensors: tuple[Survival, ...]

    @property
    def total(self) -> Survival:
        """As if all tensors were one."""
        sums = (sum(getattr(t, n) for t in self.tensors) for n in ("weight", "delta", "along", "miss", "whole"))
        return Survival(f"all {len(self.tensors)} tensors", "", *sums)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: the ratios by tensor, and in total."""
        names = ("change", "kept", "off", "noise")
        rows = {t.where: {"scheme": t.scheme} | {n: getattr(t, n) for n in names} for t in self.tensors}
        return {n: getattr(self.total, n) for n in names} | {"tensors": rows}

    def __str__(self) -> str:
        return "\n".join(str(t).rstrip() for t in (*self.tensors, self.total))


def ratio(a: float, b: float, empty: float = 0.0) -> float:
    return a / b if b else empty


class Evidence:
    """The report over what merging rewrites, gathered host by host."""

    def __init__(self, model: nn.Module):
        self.paths = {id(host): path for path, host in hosts(model)}
        self.rows: list[Survival] = []

    def see(self, found: list[tuple[Any, str, Tensor]]) -> None:
        """(host, tensor's name, its merged value) of one host."""
        for host, name, W in found:
            there = encoded(host).get(name)
            if there is not None:
                where = f"{self.paths[id(host)]}.{name}".lstrip(".")
                self.rows.append(survival(where, there.scheme, read(host, name), W, there.again(W)))

    def report(self) -> MergeReport:
        if not self.rows:
            fix = "merge it plainly: nothing is lost"
            raise InputError(Problem("nothing that merging rewrites is kept as codes", "requantize", fix=fix))
        return MergeReport(tuple(self.rows))


def survival(where: str, scheme: str, before: Tensor, wanted: Tensor, got: Tensor) -> Survival:
    """The sizes of one tensor, summed in float64: before, as merged, and as it is once encoded again."""
    with torch.no_grad():
        W, M, Q = (t.detach().float() for t in (before, wanted, got))
        delta = M - W
        pairs = ((W, W), (delta, delta), (Q - W, delta), (Q - M, Q - M), (M, M))
        return Survival(where, scheme, *(float((a * b).sum(dtype=torch.float64)) for a, b in pairs))
