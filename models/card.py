"""The card of a model from its record: a text with places for tables."""

from collections.abc import Mapping, Sequence
from string import Template
from typing import Any


def card(words: str, record: Mapping[str, Any]) -> str:
    """`words` with the record's numbers and tables in it."""
    figures = record["figures"]
    places = {
        "parameters": f"{record['parameters']:,}",
        "bytes": f"{record['bytes']:,}",
        "sha256": record["sha256"],
        "phases": phases(record["phases"]),
        "sources": table("source | licence | training documents | dev documents",
                         [[name, *row] for name, row in record["sources"].items()]),
        **{name: grid(figures[name]) for name in ("hidden_tokens", "spans", "ranked", "written") if name in figures},
        "samples": "\n\n".join(f"> {quoted(a)}\n>\n> **→ {quoted(b)}**" for a, b in figures.get("samples", ())),
    }  # fmt: skip
    return Template(words).substitute(places, hidden=places.get("hidden_tokens", ""))


def phases(found: Mapping[str, Any]) -> str:
    """Steps, tokens and losses (nats) of every phase."""
    rows = []
    for name, phase in found.items():
        dev = phase["dev"][:: max(1, len(phase["dev"]) // 6)]
        shown = ", ".join(f"{loss:.2f} ({step})" for step, loss in [*dev[:-1], phase["dev"][-1]])
        rows.append([name, phase["steps"], f"{phase['tokens']:,}", phase["seconds"], shown])
    return table("phase | steps | tokens read | seconds (shared core) | dev loss (at step)", rows)


def grid(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per name, a column per figure; an empty cell where a row has none."""
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    return table(" | ".join(["", *(c.replace("_", " ") for c in columns)]),
                 [[name, *(row.get(c, "") for c in columns)] for name, row in rows.items()])  # fmt: skip


def table(head: str, rows: Sequence[Sequence[Any]]) -> str:
    rule = "|".join(["---"] * len(head.split(" | ")))
    lines = [f"| {head} |", f"|{rule}|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]
    return "\n".join(lines)


def quoted(text: str) -> str:
    return text.replace("\n", "  \n> ")
