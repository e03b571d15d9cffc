"""A report as a picture: score against time, each model a disk whose area is its parameters, the part of embedding
tables inside it lighter."""

from pathlib import Path
from typing import Any

from featherweight.distill.report.lines import models
from featherweight.distill.report.report import DistillReport
from featherweight.files.picture import blank, save, style

COLORS = {"teacher": "#8a8a8a", "student": "#1f6fb4", "labels alone": "#d1590f"}
LARGEST = 2600.0  # points² of the largest disk


def picture(report: DistillReport, path: str | Path) -> Path:
    """Draw the report into `path`, a .png or an .svg. Raises InputError for another kind."""
    with style():
        return save(draw(report), Path(path))


def draw(report: DistillReport) -> Any:
    figure = blank(10, 4)
    sides = figure.subplots(1, len(report.faster), sharey=True)
    for axes, batch in zip(sides, report.faster, strict=True):
        disks(axes, report, batch)
    sides[0].set_ylabel(
        report.metric.replace("_", " ") + (" (nats, less is better)" if report.metric == "loss" else "")
    )
    figure.suptitle(f"area: parameters, embedding tables lighter      {report.hardware}", fontsize=8, color="#606060")
    return figure


def disks(axes: Any, report: DistillReport, batch: int) -> None:
    """One batch size."""
    there = models(report)
    most = max(m.parameters for m in there.values())
    times = [1000 * m.seconds[batch] for m in there.values()]
    scores = [m.scores[report.metric] for m in there.values()]
    near = [(n, y) for n, y in zip(there, scores, strict=True) if n != "teacher"]
    for (name, m), x, y in zip(there.items(), times, scores, strict=True):
        area = LARGEST * m.parameters / most
        axes.scatter([x], [y], s=area, color=COLORS[name], alpha=0.85, linewidths=0)
        axes.scatter([x], [y], s=area * m.embedding / m.parameters, color="white", alpha=0.55, linewidths=0)
        others = [other for n, other in near if n != name and name != "teacher"]
        below = any(y < other or (y == other and name != "student") for other in others)
        side = -1 if below else 1  # student and control are as fast: the lower one's label goes below
        axes.annotate(f"{name}  {y:.3g}  {m.parameters / 1e6:.3g} M", (x, y), xytext=(0, side * (area**0.5 / 2 + 7)),
                      textcoords="offset points", ha="center", va="center", fontsize=9)  # fmt: skip
    wide, high = max(times) - min(times), max(scores) - min(scores)
    axes.set_xlim(0, max(times) + 0.35 * max(wide, max(times) / 4))
    room = max(high, 0.02 * max(map(abs, scores)))
    axes.set_ylim(min(scores) - 0.8 * room, max(scores) + 0.8 * room)
    if report.metric != "loss":
        axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 1])  # no score is above
    faster = report.faster[batch]
    axes.set_xlabel(f"ms a forward, batch {batch}: {faster.value:.2f} times as fast")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
