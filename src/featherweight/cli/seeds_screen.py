"""Runs of several seeds on the screen: a line for each, then the median and the middle half."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featherweight.cli.screen import Shown

if TYPE_CHECKING:
    from featherweight.train.repeats import Repeats, Spread


def report(found: "Repeats", resume: str) -> Shown:
    """The table and where everything is. `resume`: what else to type is like it."""
    share = next(iter(found.runs.values()))
    lines = [
        f"trained {share.trainable:,} of {share.total:,} parameters, {len(found.runs)} times",
        f"figures: {found.output / 'seeds.json'}",
        f"next: fw predict --adapter {found.output}/seed-{next(iter(found.runs))} --data {resume}",
    ]
    return Shown(found.to_dict(), (table(found.scores, found.summary), *lines))


def table(scores: Mapping[int, Mapping[str, float]], summary: Mapping[str, "Spread"]) -> Any:
    """Seeds down, scores across."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("seed")
    for name in summary:
        made.add_column(name, justify="right")
    rows: Sequence[tuple[str, list[float]]] = [
        (str(seed), [one[name] for name in summary]) for seed, one in scores.items()
    ]
    for i, (seed, values) in enumerate(rows):
        made.add_row(seed, *(f"{v:.4f}" for v in values), end_section=i + 1 == len(rows))
    made.add_row("median", *(f"{s.median:.4f}" for s in summary.values()))
    made.add_row("middle half", *(f"{s.lower:.4f} to {s.upper:.4f}" for s in summary.values()))
    made.add_row("inter-quartile range", *(f"{s.iqr:.4f}" for s in summary.values()))
    return made
