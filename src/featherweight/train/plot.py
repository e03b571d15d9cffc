"""The loss curve of a run as PNG and SVG: training loss, dev loss, and below it the metric that picks the best step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featherweight.files.picture import FORMATS, blank, save, style

BLUE, ORANGE, GRAY = "#1f6fb4", "#d1590f", "#8a8a8a"
FEW = 12  # points that are drawn as such
WINDOW = 40  # a point of the smooth curve is the mean over a 20th of the run, centered: no lag


def curve(history: Sequence[dict[str, Any]], folder: Path, best: tuple[str, int] | None = None) -> list[Path]:
    """Draw `history` (lines of metrics.jsonl) into folder/loss.png and loss.svg; nothing when there is no point.

    `best` is the deciding metric and the step of its best value.
    """
    trained = [(r["step"], r["loss"]) for r in history if "loss" in r]
    if not trained:
        return []
    with style():
        figure = draw(trained, [r for r in history if "dev" in r], best)
        return [save(figure, folder / f"loss{kind}") for kind in FORMATS]


def draw(trained: list[tuple[int, float]], dev: list[dict[str, Any]], best: tuple[str, int] | None) -> Any:
    metric = best[0] if best and best[0] != "loss" and any(best[0] in r["dev"] for r in dev) else None
    figure = blank(7, 5.2 if metric else 4)
    rows = figure.subplots(2 if metric else 1, 1, sharex=True, squeeze=False, height_ratios=(2, 1) if metric else (1,))
    top, bottom = rows[0, 0], rows[-1, 0]
    losses(top, trained, [(r["step"], r["dev"]["loss"]) for r in dev if "loss" in r["dev"]])
    if metric:
        points = [(r["step"], r["dev"][metric]) for r in dev if metric in r["dev"]]
        bottom.plot(*zip(*points, strict=True), color=ORANGE, marker="o", markersize=4)
        bottom.set_ylabel(f"dev {metric.replace('_', ' ')}")
    if best:
        for axes in rows[:, 0]:
            axes.axvline(best[1], color=GRAY, linewidth=1, linestyle=":", label=f"best: step {best[1]}")
    top.legend(frameon=False)
    bottom.set_xlabel("optimizer step")
    return figure


def losses(axes: Any, trained: list[tuple[int, float]], dev: list[tuple[int, float]]) -> None:
    steps = [s for s, _ in trained]
    axes.plot(steps, [v for _, v in trained], color=BLUE, alpha=0.3, linewidth=1)
    few: dict[str, Any] = {"marker": "o", "markersize": 4} if len(trained) <= FEW else {}  # a line has two ends
    axes.plot(steps, smoothed([v for _, v in trained]), color=BLUE, linewidth=1.8, label="training, smoothed", **few)
    if dev:
        axes.plot(*zip(*dev, strict=True), color=ORANGE, marker="o", markersize=4, label="dev")
    axes.set_ylabel("loss per unit (nats)")
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(integer=True)  # half a step is none
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)


def smoothed(values: Sequence[float]) -> list[float]:
    """The centered moving average; at the ends the window narrows on both sides."""
    last, half = len(values) - 1, max(1, len(values) // WINDOW)
    sides = [min(half, i, last - i) for i in range(len(values))]
    return [sum(values[i - n : i + n + 1]) / (2 * n + 1) for i, n in enumerate(sides)]
