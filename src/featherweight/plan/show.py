"""A plan on a screen, and as a picture: one bar of what is in memory, cut by component."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.files.picture import blank, save, style
from featherweight.plan.fit import Option
from featherweight.plan.placement import placements
from featherweight.plan.plan import Plan
from featherweight.plan.traced import ACTIVATIONS, ADAPTERS, BACKWARD, BASE, CODES, GRADIENTS, LOSS, OPTIMIZER

if TYPE_CHECKING:
    from rich.console import Console

COLORS = {
    BASE: "#1f6fb4", CODES: "#5aa7dd", ADAPTERS: "#d1590f", GRADIENTS: "#f0a35e", OPTIMIZER: "#8c4a9e",
    ACTIVATIONS: "#3a9b6b", LOSS: "#b8b43c", BACKWARD: "#8fcdae",
}  # fmt: skip
OTHER = "#8a8a8a"


def size(count: float) -> str:
    """Bytes as people say them: powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return (
                f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} GB"
            )
        count /= 1000
    raise AssertionError


def amount(count: float) -> str:
    """Operations as people say them."""
    for unit in ("", " K", " M", " G", " T", " P"):
        if count < 999.5 or unit == " P":
            return f"{count:.3g}{unit}FLOP"
        count /= 1000
    raise AssertionError


def ordered(memory: Mapping[str, int]) -> list[tuple[str, int]]:
    """Components in the order of the colors, the rest after them."""
    known = [(name, memory[name]) for name in COLORS if name in memory]
    return known + [(name, value) for name, value in memory.items() if name not in COLORS]


def screen(plan: Plan, out: "Console", devices: int = 8) -> None:
    """The plan as a table, bars included."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    what = "nothing: the model as it is" if plan.method is None else repr(plan.method)
    base = plan.precision if plan.scheme is None else f"{plan.scheme.scheme!r}, {plan.precision} arithmetic"
    out.print(Text(f"{plan.model}   {what}   base in {base}   {plan.batch} x {plan.length} tokens"))
    counted = f"{plan.trainable:,} of {plan.total:,} parameters train ({plan.share:.3g} %)"
    out.print(Text(f"{counted}; adapter file {size(plan.adapter_bytes)}"))
    if plan.memory:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("a training step at its peak")
        table.add_column("bytes", justify="right")
        table.add_column("")
        most = max(plan.memory.values())
        for name, value in ordered(plan.memory):
            bar = Text("█" * round(28 * value / most), style=COLORS.get(name, OTHER))
            table.add_row(name, size(value), bar)
        table.add_row("together", size(plan.train_bytes), "", style="bold")
        out.print(table)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("other peaks")
    table.add_column("bytes", justify="right")
    for name, value in plan.peaks.items():
        table.add_row(name, size(value))
        if name == "generate" and plan.kv_cache:
            table.add_row("  of it keys and values", size(plan.kv_cache))
    out.print(table)
    if plan.memory:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("placed", "on each device", "in CPU memory"):
            table.add_column(title, justify="left" if title == "placed" else "right")
        for place in placements(plan, devices):
            table.add_row(place.name, size(place.device), size(place.host) if place.host else "")
        out.print(table)
    for line in lines(plan):
        out.print(Text(line))


def lines(plan: Plan) -> list[str]:
    """Work, data, time and what the figures leave out."""
    found = []
    if plan.flops:
        found.append(f"a step: {amount(plan.flops)}, of which forward {amount(plan.forward_flops)}")
    if plan.token_flops:
        found.append(f"one more token of one row: {amount(plan.token_flops)}")
    if plan.data:
        d = plan.data
        found.append(f"an epoch: {d['rows']:,} rows, {d['tokens_per_epoch']:,} tokens, {d['steps_per_epoch']:,} steps; "
                     f"{d['cut_rows']:,} rows are cut, {d['cut_tokens']:,} tokens lost")  # fmt: skip
    if plan.seconds is not None:
        steps = plan.data.get("steps_per_epoch")
        epoch = f", {plan.seconds * steps / 60:.1f} min an epoch at full length" if steps else ""
        found.append(f"a step takes {plan.seconds:.3g} s here, {plan.tokens / plan.seconds:,.0f} tokens/s"
                     f"{epoch}")  # fmt: skip
    return [*found, *(f"note: {note}" for note in plan.notes)]


def picture(plans: Sequence[tuple[str, Plan]], path: str | Path, limit: int | None = None) -> Path:
    """Stacked bars, one for each named plan, as PNG or SVG by the name of the file; a line at `limit` bytes."""
    with style():
        figure = blank(8, 1.6 + 0.45 * len(plans))
        axes = figure.subplots()
        bars(axes, plans)
        if limit is not None:
            axes.axvline(limit / 1e9, color="#c0392b", linewidth=1.2, linestyle="--")
            axes.annotate(f"limit {size(limit)}", (limit / 1e9, -0.6), color="#c0392b", ha="right", va="bottom",
                          annotation_clip=False, xytext=(-4, 0), textcoords="offset points")  # fmt: skip
        axes.set_xlabel("GB at the peak of a training step")
        axes.legend(
            frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.35 if len(plans) < 4 else -0.15), ncols=4
        )
        return save(figure, Path(path))


def bars(axes: Any, plans: Sequence[tuple[str, Plan]]) -> None:
    names = dict.fromkeys([*COLORS, *(n for _, p in plans for n in p.memory)])
    shown = [n for n in names if any(p.memory.get(n, 0) > 0.002 * p.train_bytes for _, p in plans)]
    left = [0.0] * len(plans)
    for name in shown:
        widths = [p.memory.get(name, 0) / 1e9 for _, p in plans]
        axes.barh(range(len(plans)), widths, left=left, color=COLORS.get(name, OTHER), label=name, height=0.62)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for i, (_, p) in enumerate(plans):
        axes.annotate(size(p.train_bytes), (left[i], i), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(plans)), [label for label, _ in plans])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(left))


def options(found: Sequence[Option], limit: int, out: "Console") -> None:
    """What fits, best first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not found:
        out.print(Text(f"nothing fits into {size(limit)}, not even one row at a time: give shorter rows with --length"))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    titles = ("method", "base", "recompute", "rows at a time", "accumulate", "peak", "trains")
    for title in titles:
        table.add_column(title, justify="left" if title in ("method", "base", "recompute") else "right")
    for option in found:
        p = option.plan
        table.add_row(repr(p.method), p.precision if p.scheme is None else repr(p.scheme.scheme),
                      "yes" if option.checkpointing else "", str(p.batch), str(option.accumulate),
                      size(p.train_bytes), f"{p.trainable:,}")  # fmt: skip
    out.print(
        Text(f"what fits into {size(limit)}, best first (more of the model reached, then a finer base, then faster)")
    )
    out.print(table)
