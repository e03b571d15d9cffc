"""The dynamic 8-bit map: more exponent, less fraction the smaller the value.

    i = 0..6:  2^i equal cells of [0.1, 1], their middles times 10^(i-6), both signs;  and 0, and 1

128 positive values, 0 and 127 negative ones, from ±5.5e-7 to 0.993 and 1.0. |x - x̂| <= 0.00704 absmax at the largest.
It codes the scales of double quantization and the states of 8-bit optimizers; as a format of its own it is
`Blockwise(bits=8, table="dynamic")`, 8.5 bits a parameter in blocks of 64.
Source: Dettmers 2015, arXiv:1511.04561; Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization,
arXiv:2110.02861.
"""

import torch

from featherweight.quant import codebooks


def dynamic_map() -> tuple[float, ...]:
    """256 values, sorted; in float32 all the way, so that they are bitsandbytes' to the last bit."""
    middles: list[float] = []
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middles += ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)).tolist()
    return tuple(sorted([*middles, *(-m for m in middles), 0.0, 1.0]))


codebooks.add("dynamic8", dynamic_map())
