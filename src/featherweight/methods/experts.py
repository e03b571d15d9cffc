"""LoRA on the 3-d weights of mixtures of experts.

    W'ₑ = Wₑ + s · Bₑ Aₑ      for each expert e, s = α/r (α/√r when rank-stabilized)

transformers keeps the experts of Mixtral, Qwen-MoE, OLMoE ... in one module with parameters (E, out, in), or
(E, in, out) where it says `is_transposed` (GPT-OSS): no linear layer is there to adapt. A (E r, in) holds the experts'
Aₑ one below the other; B (out, r E) their columns, expert by expert within each rank, as PEFT stores them. A starts
Kaiming-uniform, B at 0. E r (in + out) parameters for each tensor. Merge: the equation. It is a weight law: a step
rewrites the tensors of the adapted modules once, whatever the number of tokens; dropout has no place in it.
Source: Hu et al. 2021, arXiv:2106.09685, expert by expert; layout: PEFT's `target_parameters`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from featherweight.core.adapter import Adapter
from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.replace import master
from featherweight.core.site import Site
from featherweight.methods.lowrank import added


@dataclass(frozen=True, repr=False)
class ExpertLoRA(Method):
    """`targets`: "experts" for all 3-d weights, or regexes on the ends of their paths, e.g. `("experts.down_proj",)`.

    `alpha=None` means 2 × rank.
    """

    rank: int = 8
    alpha: float | None = None
    targets: str | Sequence[str] = "experts"
    rank_stabilized: bool = False

    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    place: ClassVar[str] = "3-d weights of experts"
    lr: ClassVar[float] = 2e-4
    lr_source: ClassVar[str] = "LoRA's on GPT-3 and GPT-2, Hu et al. 2021"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        modules = dict(base_modules(model))
        return [Site(path, modules[path]) for path in self.chosen(model)]

    def chosen(self, model: nn.Module) -> dict[str, list[str]]:
        """path of a module -> the names of its tensors that are adapted."""
        there = {f"{path}.{name}": (path, name) for path, m in base_modules(model) for name in stacked(m)}
        if not there:
            raise InputError(Problem(f"{self!r} finds no 3-d weights of experts in {type(model).__name__}",
                                     fix='use LoRA(targets="linear")'))  # fmt: skip
        entries = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        hit = {t: [p for p in there if t == "experts" or re.fullmatch(rf"(?:.*\.)?(?:{t})", p)] for t in entries}
        tails = sorted({re.sub(r".*\.\d+\.", "", p) for p in there})
        near = [*tails, *dict.fromkeys(p.rsplit(".", 1)[-1] for p in tails)]
        raise_all(
            Problem(
                f"{t!r} matches none of the 3-d weights", "method.targets", listed(tails), fix=did_you_mean(t, near)
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
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        if self.rank < 1:
            raise InputError(Problem("rank out of range", "method.rank", "1 or more", str(self.rank)))
        scale = alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)
        return Experts(site.module, shared[site.path], self.rank, scale)


def stacked(module: nn.Module) -> list[str]:
    """The names of a module's weights of several experts; kernels of convolutions and tables (1, n, d) are none."""
    own = () if isinstance(module, _ConvNd) else module._parameters.items()
    return [n for n, p in own if p is not None and p.dim() == 3 and len(p) > 1 and p.is_floating_point()]


class Experts(Adapter):
    """On a module of experts: for each adapted tensor a pair lora_A.weight (E r, in), lora_B.weight (out, r E)."""

    def __init__(self, host: nn.Module, names: Sequence[str], rank: int, scale: float):
        super().__init__()
        self.scale, self.rank = scale, rank
        self.flipped = bool(getattr(host, "is_transposed", False))  # (E, in, out)
        self.of = nn.ModuleDict({name: pair(getattr(host, name), rank, self.flipped) for name in names})

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {name: added(W[name], self.delta(name)) for name in self.of}

    def delta(self, name: str) -> Tensor:
        """s Bₑ Aₑ of every expert, in the shape of the tensor."""
        made: Any = self.of[name]
        A, B = made["lora_A"].weight, made["lora_B"].weight
        A = A.view(-1, self.rank, A.shape[1])  # (E, r, in)
        B = B.view(len(B), self.rank, -1).permute(2, 0, 1)  # (E, out, r)
        both = torch.bmm(B, A)  # (E, out, in)
        return self.scale * (both.transpose(1, 2) if self.flipped else both)


def pair(W: Tensor, rank: int, flipped: bool) -> nn.ModuleDict:
    experts, out, into = W.shape if not flipped else (W.shape[0], W.shape[2], W.shape[1])
    kind: dict[str, Any] = {"bias": False, "dtype": master(W.dtype), "device": W.device}
    A = nn.utils.skip_init(nn.Linear, into, experts * rank, **kind)
    B = nn.utils.skip_init(nn.Linear, experts * rank, out, **kind)
    nn.init.kaiming_uniform_(A.weight, a=5**0.5)
    nn.init.zeros_(B.weight)
    return nn.ModuleDict({"lora_A": A, "lora_B": B})
