"""Block-wise k-bit quantization: the tensor is cut into blocks, each with a constant of its own, and any table.

    X in n blocks of B elements    c_i = absmax of block i    code = argmin_j |x / c_i - t_j|    x̂ = t_code · c_i

An outlier then spoils the resolution of its own block alone. Tables (`table`, `bits`):
    int       (-(2^(k-1) - 1) ... 2^(k-1) - 1) / (2^(k-1) - 1), 2 to 8 bits: evenly spaced, |x - x̂| <= c / (2^k - 2)
    nf        NormalFloat, quantiles of N(0, 1), 2 to 8 bits; 4 is NF4
    af        AbnormalFloat, 4 bits: least mean absolute error of normal weights in blocks of 64
    lloyd     4 bits: least mean squared error of normal weights in blocks of 64 with -1, 0 and 1 kept (Lloyd-Max)
    dynamic   8 bits: the map of 8-bit optimizers (`dynamic.py`)
Bits a parameter: k + 32/B; with `double` k + 8/B + 32/(256 B). Ties go to the lower value.
Source: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861; af: Yoshida 2023, NF4
Isn't Information Theoretically Optimal (and that's Good), arXiv:2306.06965; lloyd: Max 1960 and Lloyd 1982.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from featherweight.core.errors import Problem
from featherweight.quant import codebooks, dynamic, fields, nf4
from featherweight.quant.coded import Coded
from featherweight.quant.scheme import Scheme

TABLES = {"int": range(2, 9), "nf": range(2, 9), "af": (4,), "lloyd": (4,), "dynamic": (8,)}
assert dynamic, nf4  # imported so that their tables are there

# fmt: off
AF4 = (
    -1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0,
    0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0,
)
LLOYD4 = (
    -1.0, -0.75324, -0.57905, -0.43825, -0.31613, -0.20534, -0.10105, 0.0,
    0.08823, 0.17912, 0.27404, 0.3754, 0.4877, 0.61774, 0.77821, 1.0,
)
# fmt: on
codebooks.add("af4", AF4)
codebooks.add("lloyd4", LLOYD4)
for k in TABLES["int"]:
    top = 2 ** (k - 1) - 1
    codebooks.add(f"int{k}", tuple(q / top for q in range(-top - 1, top + 1)))  # the first is never the nearest


@dataclass(frozen=True, repr=False)
class Blockwise(Coded, Scheme):
    """`bits` and `table` name the levels; `block`, `double` and `clip` as NF4's."""

    paper: ClassVar[str] = "Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861"

    bits: int = 4
    table: str = "int"

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from fields.choice(self, "table", TABLES)
        if self.table in TABLES and (type(self.bits) is not int or self.bits not in TABLES[self.table]):
            there = ", ".join(map(str, TABLES[self.table]))
            yield Problem(f"table {self.table!r} has no such width", "Blockwise.bits", there, repr(self.bits))

    @property
    def codebook(self) -> str:
        return f"{self.table}{self.bits}"
