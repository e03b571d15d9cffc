"""From one value a position to a mean over real positions.

    mean      Σ_bs m v / Σ_bs m              every token weighs the same
    row mean  Σ_s m v / Σ_s m, one a row     every row weighs the same, however the batch is cut: sums over rows are
                                             exact under accumulation, buckets and ranks

m (b, s) is 1 at real positions. What padding holds does not count, not even where it is not finite.
"""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """At least fp32: a softmax over 32,000 words in bf16 is off by a percent."""
    return x if x.dtype == torch.float64 else x.float()


def products(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ / √d in fp32 or wider, also under autocast: (…, s, d), (…, t, d) -> (…, s, t)."""
    with torch.autocast(a.device.type, enabled=False):
        return wide(a) @ wide(b).transpose(-1, -2) / a.shape[-1] ** 0.5


def kept(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values with zeros where the mask is, and the mask in their dtype."""
    if mask is None:
        return values, torch.ones_like(values)
    return values.masked_fill(~mask.bool(), 0.0), mask.bool().to(values.dtype)


def mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of `values` (any shape) over all positions that `mask` (the same shape) keeps; 0-d, 0 where none is."""
    summed, weights = kept(values, mask)
    return summed.sum() / weights.sum().clamp(min=1)


def row_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(b,): the mean of `values` (b, s) over each row's positions that `mask` (b, s) keeps, 0 for a row with none."""
    summed, weights = kept(values, mask)
    return summed.sum(1) / weights.sum(1).clamp(min=1)
