"""LoRA on the 3-d weights of mixtures of experts, and on other layers beside them.

    W'ₑ = Wₑ + s · Bₑ Aₑ      for each expert e, s = α/r (α/√r when rank-stabilized)

transformers keeps the experts of Mixtral, Qwen-MoE, OLMoE ... in one module with parameters (E, out, in), or
(E, in, out) where it says `is_transposed` (GPT-OSS): no linear layer is there to adapt. A (E r, in) holds the experts'
Aₑ one below the other; B (out, r E) their columns, expert by expert within each rank, as PEFT stores them. A starts as
LoRA's, B at 0. E r (in + out) parameters for each tensor. Merge: the equation. Where experts are only multiplied with,
s Bₑ Aₑ x is added beside Wₑ x and Wₑ stays what it is, codes too; any other use gets the sum. It has no dropout.
Source: Hu et al. 2021, arXiv:2106.09685, expert by expert; layout: PEFT's `target_parameters`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core.adapter import Adapter
from featherweight.core.base import Base
from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.core.host import base_modules
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.core.stack import flipped, stacked
from featherweight.core.targets import Targets
from featherweight.methods.beside import Beside, Sum
from featherweight.methods.lora import LoRA, pick
from featherweight.methods.lowrank import added

GROUPED = 8  # numbers of 16 bits in the 16 bytes that rows of a grouped product are a multiple of


@dataclass(frozen=True, repr=False)
class ExpertLoRA(LoRA):
    """`experts`: "experts" for all 3-d weights, or regexes on the ends of their paths, e.g. `("experts.down_proj",)`.

    `targets`: what else gets a LoRA, as LoRA names it. Patterns mean experts by `<path>.<tensor>`. `alpha=None` means 2
    × rank; experts start kaiming or gaussian.
    """

    targets: Targets = ()
    experts: str | Sequence[str] = "experts"

    place: ClassVar[str] = "3-d weights of experts, and other layers"
    lr: ClassVar[float] = 2e-4
    lr_source: ClassVar[str] = "LoRA's on GPT-3 and GPT-2, Hu et al. 2021"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        self.check_experts()
        modules = dict(base_modules(model))
        return [*(Site(p, modules[p]) for p in self.chosen(model)), *(super().hosts(model) if self.targets else ())]

    def check_experts(self) -> None:
        fields = {"dropout": 0.0, "lr_ratio": 1.0, "freeze_A": False}
        wrong: list[tuple[str, Any]] = [(n, v) for n, v in fields.items() if getattr(self, n) != v]
        wrong += [] if self.init in ("kaiming", "gaussian") else [("init", "kaiming or gaussian")]
        raise_all(
            Problem("not to be had on experts", f"method.{n}", str(v), str(getattr(self, n)),
                    "adapt the other layers apart, by a LoRA of their own (stack=True)")
            for n, v in wrong
        )  # fmt: skip

    def chosen(self, model: nn.Module) -> dict[str, list[str]]:
        """path of a module -> the names of its tensors that are adapted."""
        there = {f"{path}.{name}": (path, name) for path, m in base_modules(model) for name in stacked(m)}
        if not there:
            raise InputError(Problem(f"{self!r} finds no 3-d weights of experts in {type(model).__name__}",
                                     fix='use LoRA(targets="linear")'))  # fmt: skip
        entries = (self.experts,) if isinstance(self.experts, str) else tuple(self.experts)
        hit = {t: [p for p in there if t == "experts" or re.fullmatch(rf"(?:.*\.)?(?:{t})", p)] for t in entries}
        tails = sorted({re.sub(r".*\.\d+\.", "", p) for p in there})
        near = [*tails, *dict.fromkeys(p.rsplit(".", 1)[-1] for p in tails)]
        raise_all(
            Problem(
                f"{t!r} matches none of the 3-d weights", "method.experts", listed(tails), fix=did_you_mean(t, near)
            )
            for t, paths in hit.items()
            if not paths
        )
        found: dict[str, list[str]] = {}
        for path, name in (there[p] for p in there if any(p in paths for paths in hit.values())):
            found.setdefault(path, []).append(name)
        return found

    def shared(self, model: nn.Module) -> Mapping[str, list[str]]:
        return self.chosen(model)

    def build(self, site: Site, shared: Mapping[str, list[str]]) -> Adapter:
        if site.path not in shared:
            return super().build(site, None)
        places = {name: f"{site.path}.{name}" for name in shared[site.path]}
        ranks = {name: int(pick(self.rank_pattern, at, self.rank)) for name, at in places.items()}
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        raise_all(
            Problem("rank out of range", f"{places[n]}: method.rank", "1 or more", str(r))
            for n, r in ranks.items()
            if r < 1
        )
        scales = {
            name: pick(self.alpha_pattern, at, alpha) / ranks[name] ** (0.5 if self.rank_stabilized else 1)
            for name, at in places.items()
        }
        return Experts(site.module, ranks, scales, self.init)


class Experts(Adapter):
    """On a module of experts: for each adapted tensor a pair lora_A.weight (E r, in), lora_B.weight (out, r E)."""

    def __init__(self, host: nn.Module, ranks: Mapping[str, int], scales: Mapping[str, float], init: str):
        super().__init__()
        self.ranks, self.scales = dict(ranks), dict(scales)
        self.flipped = flipped(host)  # (E, in, out)
        self.of = nn.ModuleDict({n: pair(getattr(host, n), rank, self.flipped, init) for n, rank in ranks.items()})

    @property
    def rewrites(self) -> bool:
        return True

    def forward(self, base: Base, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(base, *args, **kwargs)
        below = base.merged
        sums: dict[str, Tensor] = {
            n: Beside(self.beside(n, below[n] if n in below else getattr(base.host, n))) for n in self.ranks
        }
        return base.using(sums)(*args, **kwargs)

    def beside(self, name: str, W: Tensor) -> Sum:
        """W + s B A without adding up; ranks are filled up with zeros to what grouped products take."""
        A, B = self.factors(name)
        short = -self.ranks[name] % GROUPED
        change = Sum(
            W.mT if self.flipped else W,
            F.pad(B, (0, short)).contiguous(),
            F.pad(A, (0, 0, 0, short)),
            self.scales[name],
        )
        return change.mT if self.flipped else change

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {name: added(W[name], self.delta(name)) for name in self.ranks}

    def delta(self, name: str) -> Tensor:
        """s Bₑ Aₑ of every expert, in the shape of the tensor."""
        A, B = self.factors(name)
        both = torch.bmm(B, A)  # (E, out, in)
        return self.scales[name] * (both.transpose(1, 2) if self.flipped else both)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A (E, r, in), B (E, out, r)."""
        made: Any = self.of[name]
        A, B = made["lora_A"].weight, made["lora_B"].weight
        return A.view(-1, self.ranks[name], A.shape[1]), B.view(len(B), self.ranks[name], -1).permute(2, 0, 1)


def pair(W: Tensor, rank: int, flipped: bool, init: str) -> nn.ModuleDict:
    experts, out, into = W.shape if not flipped else (W.shape[0], W.shape[2], W.shape[1])
    kind: dict[str, Any] = {"bias": False, "dtype": master(W.dtype), "device": W.device}
    A = nn.utils.skip_init(nn.Linear, into, experts * rank, **kind)
    B = nn.utils.skip_init(nn.Linear, experts * rank, out, **kind)
    if init == "gaussian":
        nn.init.normal_(A.weight, std=1 / rank)
    else:
        nn.init.kaiming_uniform_(A.weight, a=5**0.5)
    nn.init.zeros_(B.weight)
    return nn.ModuleDict({"lora_A": A, "lora_B": B})
