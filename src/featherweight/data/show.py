"""A report on the terminal; its facts as lines, its samples with the trained tokens marked."""

from typing import Any

from featherweight.core.errors import listed
from featherweight.data.inspect import Report

MOST = 5  # doubles and leaks shown of each kind
WIDEST = 4000  # characters of a piece of a sample that are shown: its ends


def show(report: Report, console: Any) -> None:
    """Print with rich. Trained tokens are green, and ⟦bracketed⟧ so that they show without color too."""
    from rich.text import Text

    for line in facts(report):
        console.print(Text(line))
    for item in report.samples:
        text = Text(
            f"\n{item.where}" + (f"  label {item.label}" if item.label is not None else "") + "\n", style="bold"
        )
        for whole, trained in item.pieces:
            piece = ends(whole)
            text.append(f"⟦{piece}⟧" if trained else piece, style="not bold green" if trained else "not bold")
        console.print(text)


def ends(piece: str) -> str:
    """The piece, or what of a gigantic one can be looked at, and how much is not shown."""
    half, over = WIDEST // 2, len(piece) - WIDEST
    return f"{piece[:half]} [… {over:,} characters …] {piece[-half:]}" if over > 0 else piece


def facts(r: Report) -> list[str]:
    """One line per fact; what needs attention says what to do about it."""
    lines = [f"{r.shape}: " + ", ".join(f"{role}={column}" for role, column in r.columns.items())]
    lines += ["rows: " + ", ".join(f"{n:,} {split}" for split, n in r.rows.items())]
    if r.labels:
        lines.append("labels: " + listed([f"{name} {count:,}" for name, count in r.labels.items()]))
    if r.lengths:
        lines.append("tokens per row: " + ", ".join(f"{name} {n}" for name, n in r.lengths.items()))
    if r.truncated_rows:
        lines.append(f"cut: {r.truncated_rows:,} rows lose {r.truncated_tokens:,} tokens; raise --length to keep them")
    if r.trained_share is not None:
        lines.append(f"trained: {r.trained_tokens:,} tokens, {r.trained_share:.1%} of all")
    if r.untrained:
        lines.append(f"rows without a trained token: {len(r.untrained):,} ({listed(r.untrained, MOST)})")
    lines += [*pairs("exact duplicates", r.exact), *pairs("near-duplicates", r.near)]
    return [*lines, *pairs("held-out rows found in the training rows", r.leaks), *(f"note: {n}" for n in r.notes)]


def pairs(name: str, found: list[Any]) -> list[str]:
    if not found:
        return []
    shown = [f"{a} = {b}" if not s else f"{a} ~ {b} ({s[0]:.2f})" for a, b, *s in found[:MOST]]
    return [f"{name}: {len(found):,}: " + listed(shown, MOST) + (" …" if len(found) > MOST else "")]
