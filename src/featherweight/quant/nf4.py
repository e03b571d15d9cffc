"""NF4: sixteen levels at the quantiles of N(0, 1), scaled by the absmax of each block.

    code = argmin_j |x / absmax - q_j|        x̂ = q_code · absmax        |x - x̂| <= 0.152 absmax

The table: Q = inverse normal distribution function, o = ½[(1 - 1/2^(k+1)) + (1 - 1/(2(2^k - 1)))] = 0.9677 for k = 4;
2^(k-1) positive quantiles Q(linspace(o, ½)), 2^(k-1) - 1 negative ones, 0; over the greatest, Q(o). The halves are made
apart because a symmetric k-bit table has no exact zero. The paper's eq. 4, q_i = ½(Q(i/(2^k+1)) + Q((i+1)/(2^k+1))),
is the motive: taken literally it begins with -inf and has no 0.
4.5 bits a parameter in blocks of 64, 4.127 with `double`. Levels are about equally used on normal weights, not of least
error: `Blockwise(table="lloyd")` has less.
Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

from featherweight.quant import codebooks
from featherweight.quant.coded import Coded
from featherweight.quant.scheme import Scheme

# The published constants; `normal_float(4)` comes within 5e-7 of them.
# fmt: off
NF4_TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


def normal_float(bits: int) -> tuple[float, ...]:
    """The NormalFloat table of so many bits, derived."""
    half, Q = 2 ** (bits - 1), NormalDist().inv_cdf
    offset = 1 - (1 / 2 ** (bits + 1) + 1 / (2 * (2**bits - 1))) / 2

    def quantiles(count: int) -> list[float]:
        return [Q(offset + (0.5 - offset) * i / count) for i in range(count)]  # the last, Q(½) = 0, left out

    levels = [*(-q for q in quantiles(half - 1)), 0.0, *quantiles(half)]
    return tuple(sorted(q / Q(offset) for q in levels))


codebooks.add("nf4", NF4_TABLE)
for k in (2, 3, 5, 6, 7, 8):
    codebooks.add(f"nf{k}", normal_float(k))


@dataclass(frozen=True, repr=False)
class NF4(Coded, Scheme):
    """`block` elements share a scale; `double` quantizes the scales; `clip` None, a percentile of |w|, or "mse"."""

    paper: ClassVar[str] = "Dettmers et al. 2023, QLoRA, arXiv:2305.14314"

    @property
    def codebook(self) -> str:
        return "nf4"
