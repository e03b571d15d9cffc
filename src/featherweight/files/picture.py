"""Pictures as every report draws them: no window, one style, the same bytes for the same figures."""

from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem

FORMATS: dict[str, dict[str, Any]] = {".png": {"dpi": 144}, ".svg": {"metadata": {"Date": None}}}


def style(font: float = 10) -> Any:
    """The context to draw and save in; `font` in points."""
    import matplotlib as mpl

    return mpl.rc_context(
        {"font.size": font, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "fw"}
    )


def blank(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> Path:
    """Write a .png or an .svg. Raises InputError for another kind."""
    if path.suffix not in FORMATS:
        raise InputError(Problem("unknown kind of picture", "picture", " or ".join(FORMATS), repr(str(path))))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **FORMATS[path.suffix])
    return path
