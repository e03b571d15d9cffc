"""`repeat`: one run for each of several seeds, and what is typical of them: the median and the quartiles.

    output/seed-0/  output/seed-1/  …     runs like any other, each resumable by itself
    output/seeds.json                     scores of each, median, quartiles, inter-quartile range

Quartiles are those of linear interpolation between order statistics (numpy's default), as T-Few's tables have them.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from featherweight.core.errors import InputError, Problem
from featherweight.files.staged import write_text
from featherweight.train.log import suite
from featherweight.train.run import Run, train

SEEDS = "seeds.json"
PLACE = "{seed}"  # in the name of a data file: each seed has its own draw


@dataclass(frozen=True)
class Spread:
    """Of a few numbers: the middle one, and between which the middle half lies."""

    median: float
    lower: float
    upper: float
    iqr: float


@dataclass(frozen=True)
class Repeats:
    """The runs by seed, and the spread of each of their dev scores (without dev rows: of the last training loss)."""

    output: Path
    runs: Mapping[int, Run]
    scores: Mapping[int, Mapping[str, float]]

    @property
    def summary(self) -> dict[str, Spread]:
        return spreads(self.scores.values())

    def to_dict(self) -> dict[str, Any]:
        """The form of seeds.json."""
        return {
            "output": str(self.output), "scores": {str(seed): dict(found) for seed, found in self.scores.items()},
            "summary": {name: asdict(spread) for name, spread in self.summary.items()},
        }  # fmt: skip


def repeat(model: Any, data: Any, *given: Any, seeds: Sequence[int], output: str | os.PathLike[str],
           begun: Callable[[int, Path], None] | None = None, **values: Any) -> Repeats:  # fmt: skip
    """`train` once for each seed, with the same arguments, each into its own folder of `output`.

    `{seed}` in a data path is the seed's own file. With resume=True runs that are over are read, the one that was cut
    goes on, and the others start. `begun` is told each seed and its folder. Raises InputError for a live model, which
    trains only once, and whatever `train` raises; seeds that were done by then stay done.
    """
    if not isinstance(model, str | os.PathLike | None):
        fix = "give its path: each seed starts from the same weights"
        raise InputError(Problem("a live model trains once", "model", "a path or hub name", type(model).__name__, fix))
    if not seeds:
        raise InputError(Problem("no seed to train with", "seeds", "one or more", "none"))
    folder, runs = Path(output), dict[int, Run]()
    with suite():
        for seed in seeds:
            place = folder / f"seed-{seed}"
            if begun is not None:
                begun(seed, place)
            runs[seed] = train(model, placed(data, seed), *given, output=place, seed=seed, **values)
    made = Repeats(folder, runs, {seed: scores_of(run) for seed, run in runs.items()})
    write_text(folder / SEEDS, json.dumps(made.to_dict(), indent=1) + "\n")
    return made


def placed(data: Any, seed: int) -> Any:
    """The data with the seed's number in its paths."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data).replace(PLACE, str(seed))
    if isinstance(data, Mapping):
        return {placed(key, seed): placed(part, seed) for key, part in data.items()}
    return [placed(part, seed) if isinstance(part, str) else part for part in data] if isinstance(data, list) else data


def scores_of(run: Run) -> dict[str, float]:
    """Its dev scores, else its last training loss."""
    found = {name: value for name, value in run.scores.items() if value is not None}
    losses = [line["loss"] for line in run.history if "loss" in line]
    return found or ({"training loss": losses[-1]} if losses else {})


def spreads(scores: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    """The spread of every score that all have."""
    several = list(scores)
    names = [name for name in several[0] if all(name in one for one in several)] if several else []
    return {name: spread([one[name] for one in several]) for name in names}


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of one number or more."""
    lower, _, upper = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(median(values), lower, upper, upper - lower)
