"""The int8 grid over a range: scale and zero point of activations.

symmetric   s = max(-low, high) / 127      q = clamp(round(x / s), -127, 127)                     x ≈ q s
affine      s = (high - low) / 255         q = clamp(round(x / s) + z, -128, 127)                 x ≈ (q - z) s
                                           z = round(-low / s) - 128, so that 0 is exact
"""

import torch
from torch import Tensor


def grid(low: Tensor, high: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Ranges that hold 0 -> scales and zero points (floats; 0 where symmetric). An empty range has scale 0."""
    if symmetric:
        s = torch.maximum(-low, high) / 127
        return s, torch.zeros_like(s)
    s = high / 255 - low / 255  # not their difference first: that may overflow
    return s, (-low / torch.where(s == 0, 1.0, s)).round() - 128


def codes(x: Tensor, s: Tensor, z: Tensor, symmetric: bool) -> Tensor:
    """The codes nearest to x, as floats: NaN stays NaN."""
    return ((x / torch.where(s == 0, 1.0, s)).round() + z).clamp(-127 if symmetric else -128, 127)


def range_error(x: Tensor, low: Tensor, high: Tensor, symmetric: bool) -> Tensor:
    """x less what its code decodes to."""
    s, z = grid(low, high, symmetric)
    return x - (codes(x, s, z, symmetric) - z) * s
