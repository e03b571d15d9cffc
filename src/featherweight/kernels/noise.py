"""Dropout masks cut from integer noise.

A mask needs 16 random bits per element, not a float: torch draws 64-bit words, and each word, read as four 16-bit
integers, decides four elements. Several times cheaper on a CPU than `bernoulli_`, and determined by torch's own
generator.
"""

import torch
from torch import Tensor

LEVELS = 1 << 16


def drop_level(p: float) -> int:
    """How many of the 65,536 values of a 16-bit integer drop an element: p to within 2⁻¹⁷.

    Raises ValueError unless 0 <= p < 1; the largest share that can be dropped is 1 - 2⁻¹⁶.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {p!r}")
    return min(round(p * LEVELS), LEVELS - 1)


def keep_probability(p: float) -> float:
    """The exact probability with which `keep_mask` keeps an element; dividing by it makes the expectation exact."""
    return 1 - drop_level(p) / LEVELS


def keep_mask(shape: tuple[int, ...] | torch.Size, p: float, device: torch.device | str = "cpu") -> Tensor:
    """int8 of `shape`: 1 where an element is kept, 0 where it is dropped (with probability p to within 2⁻¹⁷)."""
    n = 1
    for size in shape:
        n *= size
    words = torch.randint(-(1 << 63), (1 << 63) - 1, ((n + 3) // 4,), device=device)
    noise = words.view(torch.int16)[:n].ge_(drop_level(p) - LEVELS // 2)
    return noise.to(torch.int8).view(shape)
