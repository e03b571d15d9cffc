"""How much LoRA is enough: by rank, by place, by alpha, by dtype; what a full fine-tune is made of; how few dimensions.

    python benchmarks/rank.py                      every run that is not in the JSON yet; stop it and go on at will
    python benchmarks/rank.py --only sst2          cells whose name contains a word
    python benchmarks/rank.py --arm alpha          arms whose name or group contains a word
    python benchmarks/rank.py --seeds 1            the first seed alone

e2e_nlg with stories260k (60 steps of 8 rows, nats a token of 120 rows), sst2 and banking77 with MiniLM (80 steps of 16,
accuracy on 400 rows). Each arm tries three rates, the best on dev at seed 0 is kept; arms that change alpha, its scale
or the adapter's dtype take the rate kept for rank 8, or that times what their name says. Alpha is twice the rank unless
the name says otherwise. Differences are to LoRA of rank 8 on q,v and to full fine-tuning, paired by seed and test row,
with the middle 95 % of a bootstrap over both. `spectrum`: the change that full fine-tuning made to the blocks'
matrices, cut to a rank by `fw.extract`.
"""

import argparse
import json
import statistics
import warnings
from typing import Any

import _paired
import numpy as np
from _rank import ARMS, TIERS, USUAL, Cell, data_of, encoded, one, scored, tried
from _rowwise import interval, opened, units

Runs = dict[str, Any]


def key(label: str, rate: float, seed: int) -> str:
    return f"{label}, lr {rate:g}, seed {seed}"


def kept(cell: Cell, label: str, runs: Runs) -> float | None:
    """The rate of an arm, once it can be told: that of the arm it follows, or the best on dev at seed 0."""
    arm = ARMS[label]
    if arm.follows:
        theirs = kept(cell, arm.follows, runs)
        return None if theirs is None else theirs * arm.rate
    found = {rate: runs.get(key(label, rate, 0)) for rate in tried(cell, label)}
    if any(run is None for run in found.values()):
        return None
    ran = {rate: run["dev"] * (-1 if cell.words else 1) for rate, run in found.items() if run and "error" not in run}
    return max(ran, key=ran.__getitem__) if ran else None


def due(cell: Cell, labels: list[str], runs: Runs, seed: int) -> tuple[str, float, int] | None:
    """What is to be run next for a seed."""
    for label in labels:
        rate = kept(cell, label, runs)
        first = tried(cell, label) if seed == 0 and not ARMS[label].follows else ()
        for wanted in (*first, rate):
            if wanted is not None and key(label, wanted, seed) not in runs:
                return label, wanted, seed
    return None


def by_seed(cell: Cell, label: str, runs: Runs) -> dict[int, Any]:
    """The runs at the kept rate."""
    rate = kept(cell, label, runs)
    found = {s: runs.get(key(label, rate, s)) for s in range(10)} if rate is not None else {}
    return {s: run for s, run in found.items() if run is not None and "error" not in run}


def difference(cell: Cell, these: list[Any], those: list[Any]) -> dict[str, Any]:
    """Mean over seeds and rows of one less the other, its interval, and what that says. Nats count down."""
    apart = np.array([opened(r, cell.words) for r in these]) - np.array([opened(r, cell.words) for r in those])
    weights = np.array(units(encoded(cell, "test"), cell.words), float)
    low, high = interval(apart, weights)
    better, worse = (high < 0, low > 0) if cell.words else (low > 0, high < 0)
    says = "better" if better else "worse" if worse else "no difference shown"
    middle = float(apart.sum() / (len(apart) * weights.sum()))
    return {"difference": round(middle, 4), "interval": [round(low, 4), round(high, 4)], "says": says}


def summary(cell: Cell, runs: Runs) -> dict[str, Any]:
    """By arm: the mean over seeds, their deviation, and the paired difference to LoRA of rank 8 and to full."""
    mine = {label: found for label in ARMS if (found := by_seed(cell, label, runs))}
    lines = {}
    for label, seeds in mine.items():
        values = [run["test"] for run in seeds.values()]
        line = {"rate": kept(cell, label, runs), "seeds": len(values), "trained": next(iter(seeds.values()))["trained"],
                "test": round(statistics.mean(values), 4)}  # fmt: skip
        line |= {"std": round(statistics.stdev(values), 4)} if len(values) > 1 else {}
        for name, other in (("to_lora", USUAL), ("to_full", "full")):
            both = [s for s in seeds if s in mine.get(other, {}) and label != other]
            if both:
                line[name] = difference(cell, [seeds[s]["rows"] for s in both], [mine[other][s]["rows"] for s in both])
        lines[label] = line
    return lines


def spectrum(cell: Cell, runs: Runs) -> dict[str, Any]:
    """Means over seeds of what full fine-tuning changed, and of what is left at each rank, beside the whole."""
    whole = by_seed(cell, "full", runs)
    if not whole:
        return {}
    found = [run["extracted"] for run in whole.values()]
    ranks = {}
    for rank in found[0]["share"]:
        line = {what: round(statistics.mean(f[what][rank] for f in found), 4) for what in ("share", "test")}
        ranks[rank] = line | difference(cell, [f["rows"][rank] for f in found], [r["rows"] for r in whole.values()])
    over = ("rank_90", "rank_90_most", "full_rank")
    return {"ranks": ranks, **{k: statistics.median(f[k] for f in found) for k in over}, "seeds": len(found)}


def attempt(cell: Cell, label: str, rate: float, seed: int) -> dict[str, Any]:
    """A run, or what it failed with: a method that does not fit the model or diverges is a finding."""
    from featherweight.core.errors import InputError
    from featherweight.train import NotFinite

    try:
        return one(cell, label, rate, seed)
    except (InputError, NotFinite) as error:
        return {"error": " ".join(str(error).split())[:300]}


def run(cell: Cell, groups: tuple[str, ...], word: str, seed: int) -> None:
    """All that is due of a seed, into the JSON at once."""
    labels = [n for n, arm in ARMS.items() if arm.group in groups and (word in n or word in arm.group)]
    while True:
        cells = _paired.load("rank").get("cells", {})
        mine = cells.setdefault(cell.name, {"runs": {}})
        if "untrained" not in mine:
            mine["untrained"] = scored(cell, cell.start(data_of(cell), 0)[0], "test")[0]
        todo = due(cell, labels, mine["runs"], seed)
        if todo is None:
            return
        mine["runs"][key(*todo)] = found = attempt(cell, *todo)
        shown = {k: v for k, v in found.items() if k not in ("rows", "extracted")}
        print(cell.name, key(*todo), json.dumps(shown), flush=True)
        mine |= {"steps": cell.steps, "batch": cell.batch, "words": cell.words,
                 "summary": summary(cell, mine["runs"]), "spectrum": spectrum(cell, mine["runs"])}  # fmt: skip
        _paired.write("rank", {"machine": _paired.machine(), "cells": cells})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--arm", default="", help="arms whose name or group contains this")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    for tier in TIERS:
        for seed in range(options.seeds):
            for cell, groups in tier:
                if options.only in cell.name:
                    run(cell, groups, options.arm, seed)


if __name__ == "__main__":
    main()
