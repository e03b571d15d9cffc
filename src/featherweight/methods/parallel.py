"""Parallel adapters: one bottleneck beside each feed-forward, from its input to its output.

    out = FF(x) + s · (U act(D x + c) + e)         s = 4, or learned from 1

          x ──┬── feed-forward (frozen) ──┬── out
              └──── D ── act ── U ── s ───┘

D (b, d), U (d, b): L (2 d b + b + d) parameters, L more where s is learned (`scale="learned"`). D starts
Kaiming-uniform with a = √5, U and the biases at 0: exactly the identity. Cannot be merged.
x is what the feed-forward reads; where a norm stands in front of it (GPT-2, Llama, T5), `reads="residual"` takes x from
before that norm, as AdapterHub does.
Source: He et al. 2021, "Towards a unified view of parameter-efficient transfer learning", arXiv:2110.04366.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import InputError, Problem
from featherweight.core.method import Method
from featherweight.core.places import Place, Plan
from featherweight.methods.bottleneck import Bottleneck, Inserted, Inserting, Shared, check, linears, resembling


@dataclass(frozen=True, repr=False)
class Parallel(Inserting, Method):
    """`scale` is a number or "learned"; `bottleneck` wins over `reduction`; `skip` and `drop` are AdapterDrop's
    (blocks without, at rest in training; Rücklé et al. 2020, arXiv:2010.11918)."""

    reduction: float = 2
    scale: float | str = 4.0
    reads: str = "input"

    paper: ClassVar[str] = "He et al. 2021, arXiv:2110.04366"
    place: ClassVar[str] = "beside the feed-forward"
    lr: ClassVar[float] = 1e-4
    lr_source: ClassVar[str] = "He et al. 2021: 1e-4 on MNLI and SST-2 with AdamW (unverified)"

    def hosts(self, model: nn.Module) -> Sequence[Place]:
        check(self)
        if isinstance(self.scale, str) and self.scale != "learned":
            raise InputError(Problem("unknown scale", "method.scale", 'a number or "learned"', repr(self.scale)))
        if self.reads not in ("input", "residual"):
            raise InputError(Problem("unknown input", "method.reads", '"input" or "residual"', repr(self.reads)))
        return list(Plan(model, self.skip).besides(self.reads == "residual"))

    def build(self, site: Place, shared: Shared) -> Adapter:  # type: ignore[override]
        if site.role == "tap":
            return Inserted(site, shared.drop, shared.first())
        down, up = linears(site, self)
        nn.init.kaiming_uniform_(down.weight, a=5**0.5)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        made = Bottleneck(site, self, shared, down, up)
        made.scale = nn.Parameter(torch.ones(1, **resembling(site))) if self.scale == "learned" else float(self.scale)
        return made
