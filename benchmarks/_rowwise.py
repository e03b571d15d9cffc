"""What a model does on each row, kept small, and the interval of a difference between two models.

    statistic = Σ_s Σ_r d(s, r) / (S Σ_r u(r))      d a row's difference, u its units: 1, or its tokens

The interval is a percentile bootstrap: seeds and rows are drawn with replacement, the same rows for every seed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

BATCH, DRAWS = 32, 4000
Outcome = tuple[list[float], list[int]]


@torch.no_grad()
def outcomes(model: Any, rows: Sequence[Any], words: bool) -> Outcome:
    """For each encoded row 1.0 where it is right (or its nats), and all that the model said: labels, or next tokens."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    values: list[float] = [0.0] * len(rows)
    said: list[list[int]] = [[]] * len(rows)
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        size = max(len(rows[i].input_ids) for i in chosen)
        ids, real = torch.zeros(len(chosen), size, dtype=torch.long), torch.zeros(len(chosen), size, dtype=torch.long)
        for n, i in enumerate(chosen):
            ids[n, : len(rows[i].input_ids)], real[n, : len(rows[i].input_ids)] = torch.tensor(rows[i].input_ids), 1
        logits = model(input_ids=ids, attention_mask=real).logits.float()
        for n, i in enumerate(chosen):
            values[i], said[i] = (nats if words else right)(logits[n], rows[i])
    return values, [one for row in said for one in row]


def right(logits: torch.Tensor, row: Any) -> tuple[float, list[int]]:
    label = int(logits.argmax())
    return float(label == int(row.labels)), [label]


def nats(logits: torch.Tensor, row: Any) -> tuple[float, list[int]]:
    ahead, targets = logits[: len(row.input_ids) - 1], torch.tensor(row.labels[1:])
    return float(torch.nn.functional.cross_entropy(ahead, targets, reduction="sum")), ahead.argmax(-1).tolist()


def units(rows: Sequence[Any], words: bool) -> list[int]:
    """Rows count once, texts by their trained tokens."""
    return [sum(t != -100 for t in row.labels[1:]) if words else 1 for row in rows]


def bits(values: Sequence[float], words: bool) -> Any:
    """Right and wrong rows as one hexadecimal number behind a 1; nats as they are."""
    return [round(v, 2) for v in values] if words else f"{int('1' + ''.join(str(int(v)) for v in values), 2):x}"


def opened(kept: Any, words: bool) -> list[float]:
    """The other way."""
    return kept if words else [float(c) for c in f"{int(kept, 16):b}"[1:]]


def interval(apart: Any, weights: Any, draws: int = DRAWS) -> tuple[float, float]:
    """The middle 95 % of the statistic over draws of (seeds, rows) differences; `weights` are the rows' units."""
    noise = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        rows = noise.integers(apart.shape[1], size=apart.shape[1])
        some = noise.integers(len(apart), size=len(apart))
        drawn.append(apart[some][:, rows].sum() / (len(apart) * weights[rows].sum()))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)
