"""The papers' own figures of the rivals: quoted, measured by others, on other rows and models than any run here.

Table 1 and table 2 of Liu et al. 2022 ("T-Few", arXiv:2205.05638), who take PET (Schick and Schütze 2021), SetFit
(Tunstall et al. 2022) and the human figure from RAFT's leaderboard (Alex et al. 2021, arXiv:2109.14076).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SOURCE = "Liu et al. 2022, arXiv:2205.05638"


@dataclass(frozen=True)
class Rival:
    """`parameters` and the rest are inputs of the rule of `rule.py`: what the printed FLOPs follow from."""

    name: str
    accuracy: float
    parameters: float = 0.0
    encoder_decoder: bool = False
    shots: int = 0  # in context
    query: float | None = None  # FLOPs as printed
    training: float | None = None
    disk: str = ""


SHOTS, SHOT, QUERY = (
    41,
    98,
    103,
)  # medians over the eleven sets: shots, tokens of one, tokens of an input with its choices
STEPS, BATCH = 1000, 8
HELD_OUT = (
    Rival("T-Few", 72.4, 11e9, True, 0, 1.1e12, 2.7e16, "4.2 MB"),
    Rival("T0 (zero-shot)", 66.9, 11e9, True, 0, 1.1e12, 0.0, "0 B"),
    Rival("T5+LM", 49.6, 11e9, True, SHOTS, 4.5e13, 0.0, "16 kB"),
    Rival("GPT-3 6.7B", 57.2, 6.7e9, False, SHOTS, 5.4e13, 0.0, "16 kB"),
    Rival("GPT-3 13B", 60.3, 13e9, False, SHOTS, 1.0e14, 0.0, "16 kB"),
    Rival("GPT-3 175B", 66.6, 175e9, False, SHOTS, 1.4e15, 0.0, "16 kB"),
)
RAFT = (
    Rival("T-Few", 75.8), Rival("human", 73.5), Rival("PET", 69.6), Rival("SetFit", 66.9), Rival("GPT-3", 62.7),
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    title: str
    rivals: tuple[Rival, ...]

    @property
    def cells(self) -> list[list[str]]:
        """Heading and rows as text; columns that no rival fills are left out."""
        columns: dict[str, list[str]] = {
            "published": [r.name for r in self.rivals],
            "accuracy": [f"{r.accuracy}%" for r in self.rivals],
            "training FLOPs": [shown(r.training) for r in self.rivals],
            "FLOPs a query": [shown(r.query) for r in self.rivals],
            "disk": [r.disk for r in self.rivals],
        }
        kept = {name: cells for name, cells in columns.items() if any(cells)}
        return [list(kept), *map(list, zip(*kept.values(), strict=True))]

    def to_dict(self) -> dict[str, Any]:
        head, *rows = self.cells
        return {"title": self.title, "source": SOURCE, "rows": [dict(zip(head, row, strict=True)) for row in rows]}


def shown(flops: float | None) -> str:
    return "" if flops is None else f"{flops:.1e}" if flops else "0"


TABLES = (
    Table(f"T0's held-out sets, few-shot ({SOURCE}, table 1)", HELD_OUT),
    Table(f"RAFT, 50 training rows a task, hidden labels ({SOURCE}, table 2)", RAFT),
)
