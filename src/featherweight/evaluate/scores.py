"""What an evaluation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, repr=False)
class Scores:
    """`values` by metric, the mean `loss` per unit (row or trained token; None where nothing was labelled), how many
    `rows`, which `split` they came from, and how many of them were cut to the model's length (`truncated`)."""

    values: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    loss: float | None = None
    split: str = ""
    truncated: int = 0

    def __getitem__(self, name: str) -> float:
        """A metric by name, `loss` included."""
        if name == "loss" and self.loss is not None:
            return self.loss
        return self.values[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: split, rows, truncated, loss and every metric."""
        counts = {"split": self.split, "rows": self.rows, "truncated": self.truncated, "loss": self.loss}
        return {**counts, **self.values}

    def __repr__(self) -> str:
        shown = {"rows": str(self.rows)}
        if self.truncated:
            shown["truncated"] = str(self.truncated)
        if self.loss is not None:
            shown["loss"] = f"{self.loss:.4f}"
        shown |= {name: f"{value:.4f}" for name, value in self.values.items()}
        wide = max(map(len, shown))
        return "\n".join([self.split or "scores", *(f"  {name:<{wide}}  {text:>9}" for name, text in shown.items())])
