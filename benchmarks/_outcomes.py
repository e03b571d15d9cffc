"""What a model does on each row, kept small, and differences of two models over rows and seeds.

    statistic = Σ_s Σ_r d(s, r) / (S Σ_r u(r))      d a row's difference, u its units: 1, or its tokens

The interval is a percentile bootstrap: seeds and rows are drawn with replacement, the same rows for every seed.
"""

import math
import statistics
from typing import Any

import _real
import numpy as np
import torch
from _distill import LENGTH, Job

BATCH, DRAWS = 32, 4000
Outcome = tuple[list[float], list[int]]


@torch.no_grad()
def outcomes(model: Any, job: Job, split: str) -> Outcome:
    """For each row 1.0 where it is right (or its nats), and all that the model said: labels, or next tokens."""
    rows = encoded(job, split)
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
            values[i], said[i] = (nats if job.words else right)(logits[n], rows[i])
    return values, [one for row in said for one in row]


def right(logits: torch.Tensor, row: Any) -> tuple[float, list[int]]:
    label = int(logits.argmax())
    return float(label == int(row.labels)), [label]


def nats(logits: torch.Tensor, row: Any) -> tuple[float, list[int]]:
    ahead, targets = logits[: len(row.input_ids) - 1], torch.tensor(row.labels[1:])
    return float(torch.nn.functional.cross_entropy(ahead, targets, reduction="sum")), ahead.argmax(-1).tolist()


def encoded(job: Job, split: str) -> list[Any]:
    """The rows as the task makes them."""
    from _distill import teacher_of

    known = CACHE.get((job.name, split))
    if known is None:
        known = CACHE[job.name, split] = _real.encoded(
            {"train": job.data[split]}, job.task, teacher_of(job).tokenizer, LENGTH
        )
    return known


CACHE: dict[tuple[str, str], list[Any]] = {}


def units(job: Job, split: str) -> list[int]:
    """Rows count once, texts by their trained tokens."""
    rows = encoded(job, split)
    return [sum(t != -100 for t in row.labels[1:]) if job.words else 1 for row in rows]


def scores(job: Job, values: list[float], split: str) -> float:
    """Accuracy, or nats a token with the sign turned: more is better."""
    return (-1 if job.words else 1) * sum(values) / sum(units(job, split))


def bits(job: Job, values: list[float]) -> Any:
    """Right and wrong rows as one hexadecimal number behind a 1; nats as they are."""
    return [round(v, 2) for v in values] if job.words else f"{int('1' + ''.join(str(int(v)) for v in values), 2):x}"


def opened(job: Job, kept: Any) -> list[float]:
    """The other way."""
    return kept if job.words else [float(c) for c in f"{int(kept, 16):b}"[1:]]


def summary(job: Job, teacher: dict[str, Any], runs: dict[str, dict[int, Any]], rates: Any) -> dict[str, Any]:
    """By arm: mean over seeds, share of the teacher's, agreement with it, and the paired difference to labels alone."""
    found = {}
    for arm, by_seed in runs.items():
        if not by_seed:
            continue
        test = statistics.mean(r["test"] for r in by_seed.values())
        cell = {"rate": rates[arm], "seeds": len(by_seed), **said(job, test, teacher["test"]),
                "dev": round(statistics.mean(r["dev"] for r in by_seed.values()), 4),
                "agreement": round(statistics.mean(r["agreement"] for r in by_seed.values()), 4),
                "seconds": round(statistics.median(r["seconds"] for r in by_seed.values()), 1)}  # fmt: skip
        both = [s for s in by_seed if s in runs["labels"]]
        if arm != "labels" and both:
            cell |= compared(job, [by_seed[s]["rows"] for s in both], [runs["labels"][s]["rows"] for s in both])
        found[arm] = cell
    return found


def said(job: Job, test: float, teachers: float) -> dict[str, float]:
    """In the field's words: accuracy and the teacher's share, or perplexity and how much more of it."""
    if job.words:
        return {"nats": round(-test, 4), "perplexity": round(math.exp(-test), 3),
                "to_the_teachers": round(math.exp(teachers - test), 4)}  # fmt: skip
    return {"accuracy": round(test, 4), "share_of_the_teachers": round(test / teachers, 4)}


def compared(job: Job, these: list[Any], those: list[Any]) -> dict[str, Any]:
    """Mean difference, its interval, and what that says. Nats count down: less is better."""
    apart = np.array([opened(job, a) for a in these]) - np.array([opened(job, b) for b in those])
    weights, noise = np.array(units(job, "test"), float), np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        rows = noise.integers(apart.shape[1], size=apart.shape[1])
        some = noise.integers(len(apart), size=len(apart))
        drawn.append(apart[some][:, rows].sum() / (len(apart) * weights[rows].sum()))
    low, high = (float(v) for v in np.percentile(drawn, (2.5, 97.5)))
    better, worse = (high < 0, low > 0) if job.words else (low > 0, high < 0)
    return {"to_labels": round(float(apart.sum() / (len(apart) * weights.sum())), 4),
            "interval": [round(low, 4), round(high, 4)],
            "says": "better" if better else "worse" if worse else "no difference shown"}  # fmt: skip
