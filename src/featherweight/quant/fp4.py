"""FP4: four-bit floating point, scaled by the absmax of each block. Three different formats go by that name.

    bitsandbytes   {0, 1/16, 2, 3, 4, 6, 8, 12} / 12     2 exponent bits, 1 of fraction, its own smallest value
    e2m1           {0, ½, 1, 1½, 2, 3, 4, 6} / 6         OCP's, as in MXFP4 and NVFP4
    e3m0           {0, 2^-6, 2^-5, ..., ½, 1}            powers of two

x̂ = t_code · absmax; |x - x̂| <= absmax/6 (e3m0: absmax/4). A code is sign, then magnitude: of e2m1 and e3m0 in rising
order, of bitsandbytes by bit pattern: 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4. Code 8, -0, decodes and is never
made.
4.5 bits a parameter in blocks of 64, 4.127 with `double`.
Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314, names E2M1 and E3M0; OCP Microscaling Formats 1.0, 2023.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from featherweight.core.errors import Problem
from featherweight.quant import codebooks, fields
from featherweight.quant.coded import Coded
from featherweight.quant.scheme import Scheme

MAGNITUDES = {
    "bitsandbytes": tuple(m / 12 for m in (0, 1 / 16, 8, 12, 4, 6, 2, 3)),
    "e2m1": tuple(m / 6 for m in (0, 0.5, 1, 1.5, 2, 3, 4, 6)),
    "e3m0": (0.0, *(2.0**e for e in range(-6, 1))),
}
for kind, magnitudes in MAGNITUDES.items():
    codebooks.add(f"fp4-{kind}", (*magnitudes, *(-m for m in magnitudes)))


@dataclass(frozen=True, repr=False)
class FP4(Coded, Scheme):
    """`variant` is "bitsandbytes", "e2m1" or "e3m0"; `block`, `double` and `clip` as NF4's."""

    paper: ClassVar[str] = "Dettmers et al. 2023, QLoRA, arXiv:2305.14314"

    variant: str = "bitsandbytes"

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from fields.choice(self, "variant", MAGNITUDES)

    @property
    def codebook(self) -> str:
        return f"fp4-{self.variant}"
