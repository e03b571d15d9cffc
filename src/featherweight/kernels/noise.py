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
    """int16 of `shape`: -1, all bits set, where an element is kept, 0 where it is dropped (with p to within 2⁻¹⁷)."""
    n = 1
    for size in shape:
        n *= size
    kind = torch.device(device).type
    noise = words(n, device) if kind in ("cpu", "cuda") else integers(n, device)
    return noise.ge_(drop_level(p) - LEVELS // 2).neg_().view(shape)


def words(n: int, device: torch.device | str) -> Tensor:
    """n uniform 16-bit integers, four to a word."""
    count = (n + 3) // 4
    if torch.compiler.is_compiling():  # dynamo has no `random_`; the same words, one short of all 2⁶⁴, and slower
        bits = torch.randint(-(1 << 63), (1 << 63) - 1, (count,), device=device) ^ -(1 << 63)
    else:
        bits = torch.empty(count, dtype=torch.int64, device=device).random_(-(1 << 63), None)
    return bits.view(torch.int16)[:n]


def integers(n: int, device: torch.device | str) -> Tensor:
    """n uniform 16-bit integers, one draw each: for devices whose generator has no 64-bit words (MPS)."""
    return torch.randint(-LEVELS // 2, LEVELS // 2, (n,), dtype=torch.int32, device=device).to(torch.int16)


INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """x where it is kept, 0 where not: a bitwise and, several times cheaper than a product and blind to inf and NaN."""
    bits = INTEGERS[x.element_size()]
    return (x.view(bits) & mask.to(bits)).view(x.dtype)


def keep_(x: Tensor, mask: Tensor) -> Tensor:
    """`keep` in place."""
    bits = INTEGERS[x.element_size()]
    x.view(bits).bitwise_and_(mask.to(bits))
    return x
