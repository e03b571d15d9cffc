"""What `fw quantize` shows: the number formats, and the layers of a report as a table."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from featherweight.cli.schema import noun_keys, schemes
from featherweight.cli.screen import Shown
from featherweight.cli.value import described

if TYPE_CHECKING:
    from rich.console import Console

    from featherweight.quant.report import Layer, Report

USAGE = """\
fw quantize MODEL --scheme nf4 --scheme.double --output DIR

The number formats, with their fields and defaults:
"""


def listing() -> Shown:
    """Every number format, its fields and their defaults, and where it comes from."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("scheme", "fields", "bits a weight", "source"):
        shown.add_column(title, overflow="fold")
    data = {}
    for name, kind in sorted(schemes().items()):
        made: Any = kind()
        keys = noun_keys(kind)
        bits = 8 * made.size(SQUARE) / (SQUARE[0] * SQUARE[1])
        fields = "\n".join(f"{k.name} {described(k.kind)} [{k.default!r}]" for k in keys.values())
        shown.add_row(name, fields, f"{bits:.3f}", made.paper)
        data[name] = {"fields": {k.name: k.default for k in keys.values()}, "bits": bits, "paper": made.paper}
    return Shown({"schemes": data}, (USAGE, shown))


SQUARE = (1024, 1024)  # the matrix whose bits are counted


def table(report: "Report", out: "Console") -> None:
    """One line per role: means over its layers, and the worst of them."""
    from rich import box
    from rich.table import Table

    from featherweight.quant.report import block_names

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown.add_column("role", overflow="fold")
    outputs = any(layer.output is not None for layer in report.layers)
    columns = [*COLUMNS[:2], OUTPUT, *COLUMNS[2:]] if outputs else COLUMNS
    for title in ("n", *(title for title, _, _ in columns)):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("worst block", no_wrap=True)
    names = block_names(report.layers)
    for role, layers in roles(report).items():
        cells = [mean([value(layer) for layer in layers], form) for _, value, form in columns]
        worst = min(layers, key=lambda layer: layer.sqnr)
        place = "" if worst.block is None else f"{names[worst.block]}: "
        shown.add_row(role, str(len(layers)), *cells, f"{place}{worst.sqnr:.1f} dB")
    out.print(shown)


def used(name: str) -> Callable[["Layer"], Any]:
    """A value of how a layer's codes are used, None where that is not known."""
    return lambda layer: None if layer.usage is None else getattr(layer.usage, name)


# title, value of a layer, how it is written
COLUMNS: tuple[tuple[str, Callable[["Layer"], Any], str], ...] = (
    ("SQNR", lambda layer: layer.sqnr, "{:.1f}"),
    ("error", lambda layer: layer.error, "{:.1%}"),
    ("entropy", used("entropy"), "{:.2f}"),
    ("collide", used("collisions"), "{:.1%}"),
    ("unused", used("unused"), "{:.0f}"),
    ("bits", lambda layer: layer.bits, "{:.2f}"),
)
OUTPUT = ("output", lambda layer: layer.output, "{:.1%}")


def roles(report: "Report") -> dict[str, list["Layer"]]:
    found: dict[str, list[Layer]] = {}
    for layer in report.layers:
        found.setdefault(layer.role, []).append(layer)
    return found


def mean(values: Sequence[Any], form: str) -> str:
    """The mean of the values that are known, – where none is."""
    known = [v for v in values if v is not None]
    return form.format(sum(known) / len(known)) if known else "–"
