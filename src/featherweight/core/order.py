"""Which token stands where once virtual ones are among them: pure functions of masks and counts.

keys      virtual before token j: 2j     token j: 2j + 1     pads in front, tokens that a row lacks: aside
order     the stable sort of the keys of [virtual, real]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from featherweight.core.rows import cut


@dataclass(frozen=True)
class Frame:
    """How a host takes a sequence."""

    names: tuple[str, ...]  # the parameters of its forward
    width: int  # of its embeddings
    causal: bool  # each place sees those before it only
    cut: bool  # whether what comes out is cut back to the input's length
    offset: int  # of position ids: RoBERTa counts from padding_idx + 1
    rigid: bool = False  # cannot be told positions: rows have equally many tokens
    places: int | None = None  # positions in its learned table: a place beyond them has no vector


@dataclass
class Batch:
    """One call of a host: its inputs by name, and for each group of rows (None: all) the adapters of this kind."""

    given: dict[str, Any]
    groups: list[tuple[Tensor | None, list[Any]]]
    counts: list[int]  # of virtual tokens, for each group
    rows: int
    length: int  # t
    device: torch.device

    def __post_init__(self) -> None:
        index = [i for i, _ in self.groups if i is not None]
        self.back = torch.cat(index).argsort() if len(index) > 1 else None
        self.most = max(self.counts)
        self.even = len(set(self.counts)) == 1

    def rowwise(self, parts: Sequence[Tensor]) -> Tensor:
        """(1, ...) or (rows of the group, ...) for each group -> (rows, ...)."""
        sizes = [self.rows if i is None else len(i) for i, _ in self.groups]
        whole = torch.cat([p.expand(n, *p.shape[1:]) for p, n in zip(parts, sizes, strict=True)])
        return whole if self.back is None else whole.index_select(0, self.back)

    def own(self, causal: bool) -> Tensor:
        """(rows, N) which of the N virtual places are a row's own."""
        ones = [torch.ones(1, n, dtype=torch.bool, device=self.device) for n in self.counts]
        return self.rowwise([pad(t, self.most, causal) for t in ones])

    def tokens(self, width: int, causal: bool) -> Tensor:
        """(rows, N, d), zeros where a row has fewer."""
        made = []
        for _, stack in self.groups:
            given = [a.tokens() for a in stack]
            made.append([t.T for t in given if t is not None])
        none = next(t for parts in made for t in parts).new_zeros(width, 0)
        return self.rowwise([pad(torch.cat([none, *parts], 1), self.most, causal).T[None] for parts in made])


def pad(x: Tensor, most: int, front: bool) -> Tensor:
    """(..., n) -> (..., most)."""
    return F.pad(x, (most - x.shape[-1], 0) if front else (0, most - x.shape[-1]))


def known(batch: Batch, seen: int) -> Tensor:
    """(rows, s) what of the input, and of what the cache holds of earlier inputs, is no pad."""
    mask = batch.given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.expand(batch.rows, -1)
    length = batch.length + max(seen - batch.most, 0)
    return torch.ones(batch.rows, length, dtype=torch.long, device=batch.device)


def standing_before(batch: Batch, real: Tensor, causal: bool) -> Tensor | None:
    """(rows, N) the places that virtual tokens stand before; None where that is each row's first token."""
    parts, asked = [], False
    first = leading(real).sum(1, keepdim=True)
    for rows, stack in batch.groups:
        given = batch.given if rows is None else cut(batch.given, rows, batch.rows)
        mask, start = (real, first) if rows is None else (real[rows], first[rows])
        places = [(a.places(given, mask), a.count) for a in stack]
        asked = asked or any(p is not None for p, _ in places)
        found = [start.expand(-1, n) if p is None else p for p, n in places]
        parts.append(pad(torch.cat([start[:, :0], *found], 1), batch.most, causal))
    return batch.rowwise(parts) if asked else None


def leading(real: Tensor) -> Tensor:
    """The pads in front of a row's first token."""
    return real.cumsum(1) == 0


def ordered(real: Tensor, on: Tensor, at: Tensor | None, causal: bool) -> Tensor:
    """(rows, N+s) which of [virtual, real] stands where: token j has key 2j + 1, a virtual one before it 2j."""
    lead, s = leading(real), real.shape[1]
    aside = -1 if causal else 2 * s + 1  # pads in front, and the tokens that a row lacks
    keys = torch.arange(s, device=real.device) * 2 + 1
    at = lead.sum(1, keepdim=True).expand_as(on) if at is None else at
    both = torch.cat([torch.where(on, 2 * at, aside), torch.where(lead, aside, keys)], 1)
    return both.argsort(dim=1, stable=True)


def positions(
    batch: Batch, shape: Frame, order: Tensor, wide: Tensor, on: Tensor, at: Tensor | None, seen: int, plain: bool
) -> dict[str, Any]:
    """Position ids where the model's own would be wrong: counted over the mask, or the given ones moved along."""
    shifts = [sum(a.shift for a in stack) for _, stack in batch.groups]
    given, t, N = batch.given.get("position_ids"), batch.length, batch.most
    right = given is None and not any(shifts) and (plain or not N or not shape.causal)  # the model's own count
    if "position_ids" not in shape.names or right:
        return {}
    shift = batch.rowwise([torch.full((1, 1), n, device=batch.device) for n in shifts])
    if given is None:
        counted = (wide.long().cumsum(1) - 1).clamp_min(0) + shape.offset
        return {"position_ids": counted[:, -(t if seen else t + N) :] + shift}
    given = given.expand(batch.rows, -1)
    if seen or not N:
        return {"position_ids": given + on.sum(1, keepdim=True) + shift}
    start = leading(known(batch, seen)).sum(1, keepdim=True).expand_as(on) if at is None else at
    next_one = torch.cat([given, given[:, -1:] + 1], 1).gather(1, start)  # of the token that each stands before
    before = F.pad(on, (0, t)).gather(1, order).cumsum(1)  # virtual tokens up to here
    laid = torch.cat([next_one - 1, given], 1).gather(1, order) + before + shift
    return {"position_ids": laid.clamp_min(0)}


def returned(order: Tensor, N: int, causal: bool, start: bool, plain: bool) -> Any:
    """The places of (rows, N+t) whose states stand for the input's t: a slice where they lie together, else (rows, t).

    In a decoder that is the last place before the next token's: what follows is said by the virtual tokens there.
    """
    if start and (causal or plain):
        return slice(N, None)
    back = order.argsort(dim=1)[:, N:]
    return F.pad(back[:, 1:], (0, 1), value=order.shape[1]) - 1 if causal else back


def cut_back(out: Any, back: Any, rows: int, length: int) -> Any:
    """States (rows, N+t, d), and what routers say of them (rows (N+t), e), at the input's places; the rest as it is."""
    if isinstance(out, Tensor):
        if out.dim() == 3 and out.shape[1] == length:
            return (
                out[:, back] if isinstance(back, slice) else out.gather(1, back[..., None].expand(-1, -1, out.shape[2]))
            )
        if out.dim() == 2 and out.shape[0] == rows * length:
            return cut_back(out.view(rows, length, -1), back, rows, length).flatten(0, 1)
        return out
    if isinstance(out, dict):  # a ModelOutput
        return type(out)(**{k: cut_back(v, back, rows, length) for k, v in out.items()})
    return type(out)(cut_back(v, back, rows, length) for v in out) if type(out) in (tuple, list) else out
