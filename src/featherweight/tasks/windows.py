"""Several inputs in one row: the windows of a text that is longer than the model, or a text with each of its choices.

    input_ids (b, S)       ┌── 5 ──┬── 4 ──┐pads
    windows   (b, w)         5       4               their lengths, -100 where a row has no more

Each window is read by itself, all of them in one call of the model; what comes out stands where its tokens stood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a batch: `rows` (n), which row each is of; `columns` (n, t), where its tokens stand in that row;
    `real` (n, t), which of them are there."""

    rows: Tensor
    columns: Tensor
    real: Tensor
    width: int

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Windows:
        """Without "windows" a row is one."""
        mask = batch["attention_mask"]
        lengths = batch.get("windows", mask.sum(1, keepdim=True)).clamp_min(0)  # (b, w)
        starts = lengths.cumsum(1) - lengths
        rows, which = (lengths > 0).nonzero(as_tuple=True)
        steps = torch.arange(int(lengths.max()), device=mask.device)
        real = steps < lengths[rows, which][:, None]
        return cls(rows, (starts[rows, which][:, None] + steps).clamp_max(mask.shape[1] - 1), real, mask.shape[1])

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model reads, (n, t) each."""
        found = {n: batch[n][self.rows[:, None], self.columns] for n in ("input_ids", "token_type_ids") if n in batch}
        return {**{n: t.masked_fill(~self.real, 0) for n, t in found.items()}, "attention_mask": self.real.long()}

    def back(self, values: Tensor, rows: int) -> Tensor:
        """(n, t, C) values of the windows' tokens at their places (rows, S, C), 0 at pads."""
        out = values.new_zeros(rows, self.width, *values.shape[2:])
        return out.index_put((self.rows[:, None].expand_as(self.columns)[self.real], self.columns[self.real]),
                             values[self.real])  # fmt: skip

    def beside(self, values: Tensor, rows: int, fill: float) -> Tensor:
        """(n) one value of each window as (rows, most windows), in their order; `fill` where there is none."""
        counts = torch.bincount(self.rows, minlength=rows)
        place = torch.arange(len(self.rows), device=values.device) - (counts.cumsum(0) - counts)[self.rows]
        return values.new_full((rows, int(counts.max())), fill).index_put((self.rows, place), values)
