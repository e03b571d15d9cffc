"""A report as a heat map: blocks down, the layers of a block across, SQNR in dB as color and as a number.

Columns are roles; a block's second layer of a role (cross-attention's query) has a column of its own, `query 2`.
"""

from pathlib import Path
from typing import Any

from featherweight.files.picture import blank, save, style
from featherweight.quant.report import Layer, Report, block_names

MOST = 40  # blocks up to which cells carry their number
OUTSIDE = "other"
SPAN = 3.0  # dB that the colors span at least: small differences stay small


def heatmap(report: Report, path: Path) -> Path:
    """Draw the report into `path`, a .png or an .svg."""
    with style(font=9):
        return save(draw(report), path)


def draw(report: Report) -> Any:
    import numpy

    cells, rows, columns = grid(report.layers)
    values = numpy.full((len(rows), len(columns)), numpy.nan)
    for (row, column), layer in cells.items():
        values[rows.index(row), columns.index(column)] = min(layer.sqnr, 99.0)
    wide = max(map(len, columns))
    size = (1.8 + min(max(0.66, 0.08 * wide), 1.1) * len(columns), 1.5 + 0.3 * max(len(rows), 4))
    figure = blank(max(size[0], 5.2), min(size[1], 30))
    axes = figure.subplots()
    low, high = float(numpy.nanmin(values)), float(numpy.nanmax(values))
    low, high = min(low, (low + high - SPAN) / 2), max(high, (low + high + SPAN) / 2)
    image = axes.imshow(numpy.ma.masked_invalid(values), cmap="viridis", aspect="auto", vmin=low, vmax=high)
    figure.colorbar(image, ax=axes, label="SQNR (dB)", pad=0.02)
    axes.set_xticks(
        range(len(columns)), columns, rotation=0 if wide <= 8 else 30, ha="center" if wide <= 8 else "right"
    )
    step = max(1, len(rows) // MOST)
    names = block_names(report.layers)
    axes.set_yticks(range(0, len(rows), step), [names.get(row, str(row)) for row in rows][::step])
    axes.set_ylabel("block")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(rows) <= MOST:
        numbers(axes, values, image)
    axes.set_title(title(report), loc="left", fontsize=9)
    return figure


def title(report: Report) -> str:
    return f"{report.scheme!r}: {report.bits:.3f} bits a weight\noverall {report.sqnr:.1f} dB, worst {report.worst.sqnr:.1f} dB: {report.worst.path}"  # fmt: skip  # noqa: E501


def numbers(axes: Any, values: Any, image: Any) -> None:
    """The value in each cell, dark on bright and bright on dark."""
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value == value:  # cells without a layer are nan
                bright = image.norm(value) > 0.55
                axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7,
                          color="#202020" if bright else "#f5f5f5")  # fmt: skip


def grid(layers: tuple[Layer, ...]) -> tuple[dict[tuple[Any, str], Layer], list[Any], list[str]]:
    """(cells by row and column, rows, columns). Layers outside of the blocks make a last row of their own."""
    cells: dict[tuple[Any, str], Layer] = {}
    for layer in layers:
        row = OUTSIDE if layer.block is None else layer.block
        column, count = layer.role, 1
        while (row, column) in cells:
            count += 1
            column = f"{layer.role} {count}"
        cells[row, column] = layer
    rows = sorted({row for row, _ in cells}, key=lambda row: (row == OUTSIDE, row))
    return cells, rows, list(dict.fromkeys(column for _, column in cells))
