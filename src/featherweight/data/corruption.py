"""What is hidden of a text for a model to restore: BERT's masks and T5's spans, as pure functions of noise.

    BERT    a share `rate` of the tokens is chosen; of these 80 % become the mask, 10 % a random token, 10 % stay
            my dog is hairy     ->  my dog is [MASK]        targets: . . . hairy
    T5      a share `density` of the tokens is hidden in spans of `mean` tokens on average, each behind a sentinel
            Thank you for inviting me to your party last week
                                ->  Thank you <x> me to your party <y> week        targets: <x> for inviting <y> last

Sources: Devlin et al. 2019, section 3.1, arXiv:1810.04805; Raffel et al. 2020, section 3.1.4, arXiv:1910.10683, whose
code draws the lengths of the spans as here: hidden and kept tokens are each cut into as many parts at random places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

IGNORED = -100
MASKED, REPLACED = 0.8, 0.9  # below the first: the mask; below the second: a random token; else as it was


def hidden_count(tokens: int, rate: float) -> int:
    """How many of so many tokens BERT chooses: at least one, where there is one."""
    return min(tokens, max(1, round(tokens * rate)))


def masked(
    ids: Tensor, free: Tensor, noise: Tensor, mask: Tensor | int, vocabulary: int, rate: float
) -> tuple[Tensor, Tensor]:
    """BERT's inputs and targets (batch, seq) of `ids`; only where `free` may a token be chosen.

    noise: (3, batch, seq) in [0, 1): which tokens are chosen (the lowest), what becomes of them, which random token.
    mask: its id, or the ids to put in its place. Targets are -100 where nothing was chosen.
    """
    rank = noise[0].masked_fill(~free, 2).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    counts = [hidden_count(int(n), rate) for n in free.sum(1)]
    chosen = free & (rank < rank.new_tensor(counts)[:, None])
    other = (noise[2] * vocabulary).long()
    told = ids.where(noise[1] >= REPLACED, other)
    told = told.where(noise[1] >= MASKED, ids.new_tensor(mask) if isinstance(mask, int) else mask)
    return told.where(chosen, ids), ids.masked_fill(~chosen, IGNORED)


def span_counts(tokens: int, density: float, mean: float) -> tuple[int, int]:
    """(hidden tokens, spans) of a text of so many tokens: at least one of each, and one token is left."""
    hidden = min(max(round(tokens * density), 1), tokens - 1)
    return hidden, max(1, min(round(hidden / mean), tokens - hidden))


def spans(tokens: int, density: float, mean: float, generator: Generator | None = None) -> list[tuple[int, int]]:
    """The hidden spans of a text, as (first, behind the last). A text begins with kept tokens and ends with a span."""
    hidden, count = span_counts(tokens, density, mean)
    lengths, gaps = segments(hidden, count, generator), segments(tokens - hidden, count, generator)
    found, at = [], 0
    for gap, length in zip(gaps, lengths, strict=True):
        found.append((at + gap, at + gap + length))
        at += gap + length
    return found


def segments(total: int, parts: int, generator: Generator | None = None) -> list[int]:
    """`total` cut into so many lengths of at least 1, every cut as likely as any other."""
    import torch

    cuts = (torch.randperm(total - 1, generator=generator)[: parts - 1] + 1).sort().values.tolist()
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def split(
    ids: Sequence[int], hidden: Sequence[tuple[int, int]], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """T5's inputs and targets: each span becomes a sentinel, and behind the same sentinel stands what it hid."""
    kept: list[int] = []
    told: list[int] = []
    at = 0
    for (first, end), sentinel in zip(hidden, sentinels, strict=False):
        kept += [*ids[at:first], sentinel]
        told += [sentinel, *ids[first:end]]
        at = end
    return [*kept, *ids[at:]], told
