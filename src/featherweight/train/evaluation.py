"""Scores on the dev rows during training: the loss, and the task's own metrics where predicting is cheap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featherweight.core.errors import InputError, Problem
from featherweight.data.collate import collate
from featherweight.data.types import Encoded
from featherweight.tasks import Task
from featherweight.tasks.modes import evaluating
from featherweight.train.advice import one_class
from featherweight.train.feed import moved
from featherweight.train.ranks import Ranks


@dataclass(frozen=True, eq=False)
class Dev:
    """The dev rows, encoded, with what a perfect prediction would be."""

    rows: Sequence[Encoded]
    references: Sequence[Any]
    task: Task
    tokenizer: Any
    pad: int
    batch: int

    def scores(
        self, model: nn.Module, ranks: Ranks, arithmetic: Callable[[], Any], poll: Callable[[], None]
    ) -> tuple[dict[str, float], str | None]:
        """Loss per unit (nats) over all rows and the task's metrics, and the label of all predictions where they have
        but one (`advice.one_class`); each rank computes its share of the batches.

        `arithmetic` gives the autocast context; `poll` is called between batches and may raise to end it.
        """
        summed, count, mine = 0.0, 0.0, []
        with torch.no_grad(), evaluating(model), arithmetic():
            for chosen in self.plan()[ranks.rank :: ranks.world]:
                poll()
                batch = moved(collate([self.rows[i] for i in chosen], self.pad).tensors, ranks.device)
                loss, units, made = self.task.examine(model, batch, self.tokenizer)
                summed, count = summed + float(loss), count + float(units)
                mine += [] if made is None else list(zip(chosen, made, strict=True))
        summed, count = ranks.total(summed, count)
        if not count:
            raise InputError(Problem("no dev row has a label or trained token", self.rows[0].where))
        made = [p for _, p in sorted(ranks.gather(mine), key=lambda pair: pair[0])]
        metrics = self.task.score(made, self.references) if made else {}
        return {"loss": summed / count, **metrics}, one_class(self.task, made, self.references)

    def plan(self) -> list[list[int]]:
        """Batches of row numbers, rows of like length together."""
        order = sorted(range(len(self.rows)), key=lambda i: len(self.rows[i].input_ids))
        return [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
