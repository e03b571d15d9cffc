"""What a model does on each row of a job (`_rowwise.py`), and what that says of an arm beside another."""

import math
import statistics
from typing import Any

import _real
import _rowwise
import numpy as np
from _distill import LENGTH, Job
from _rowwise import Outcome


def outcomes(model: Any, job: Job, split: str) -> Outcome:
    """For each row 1.0 where it is right (or its nats), and all that the model said: labels, or next tokens."""
    return _rowwise.outcomes(model, encoded(job, split), job.words)


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
    return _rowwise.units(encoded(job, split), job.words)


def scores(job: Job, values: list[float], split: str) -> float:
    """Accuracy, or nats a token with the sign turned: more is better."""
    return (-1 if job.words else 1) * sum(values) / sum(units(job, split))


def bits(job: Job, values: list[float]) -> Any:
    """Right and wrong rows as one hexadecimal number behind a 1; nats as they are."""
    return _rowwise.bits(values, job.words)


def opened(job: Job, kept: Any) -> list[float]:
    """The other way."""
    return _rowwise.opened(kept, job.words)


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
    weights = np.array(units(job, "test"), float)
    low, high = _rowwise.interval(apart, weights)
    better, worse = (high < 0, low > 0) if job.words else (low > 0, high < 0)
    return {"to_labels": round(float(apart.sum() / (len(apart) * weights.sum())), 4),
            "interval": [round(low, 4), round(high, 4)],
            "says": "better" if better else "worse" if worse else "no difference shown"}  # fmt: skip
