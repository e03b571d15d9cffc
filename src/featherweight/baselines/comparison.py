"""What a comparison found: one line per contender over the same rows, what the figures say, and what they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from featherweight.baselines import intervals
from featherweight.baselines.rule import break_even

RULE, CONTEXT, FROZEN, TUNED = "rule", "in context", "frozen", "tuned"
CONFIDENCE = "95 % intervals: exact binomial for right or wrong, else bootstrap; differences by paired bootstrap"
WORK = "FLOPs counted on a sample of the rows (matrix products and attention), one row at a time"


@dataclass(frozen=True)
class Line:
    """A contender: the score of each row, and what it costs. `training` FLOPs before the first query, `query` FLOPs of
    each, `disk` bytes beside the base; None where unknown."""

    name: str
    kind: str
    values: tuple[float, ...]
    training: float | None = 0.0
    query: float | None = 0.0
    disk: int | None = 0
    trained: int = 0  # parameters
    tokens: float = 0.0  # of a query
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> intervals.Interval:
        return intervals.of_mean(self.values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "kind": self.kind, "score": self.score, "interval": list(self.interval),
            "training_flops": self.training, "query_flops": self.query, "disk_bytes": self.disk,
            "trained": self.trained, "tokens": self.tokens, "notes": list(self.notes),
        }  # fmt: skip


def pays_back(tuned: Line, untuned: Line) -> float | None:
    """Queries after which `tuned` has cost less than `untuned`; inf for never, None where a cost is unknown."""
    if tuned.training is None or tuned.query is None or untuned.training is None or untuned.query is None:
        return None
    extra = tuned.training - untuned.training
    return 0 if extra <= 0 and tuned.query <= untuned.query else break_even(max(extra, 0.0), tuned.query, untuned.query)


@dataclass(frozen=True)
class Comparison:
    """Lines in the order in which they were made, all over the same `rows`."""

    lines: tuple[Line, ...]
    measure: str
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.lines[0].values)

    def __getitem__(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)

    def best(self, *kinds: str) -> Line | None:
        """The line of the highest score among these kinds, the first of equals."""
        return max((line for line in self.lines if line.kind in kinds), key=lambda line: line.score, default=None)

    def difference(self, a: Line, b: Line) -> tuple[float, float, float]:
        """score(a) - score(b) and its interval."""
        return a.score - b.score, *intervals.of_difference(a.values, b.values)

    def back(self, line: Line) -> float | None:
        """Queries after which a line that had to be trained has cost less than the best in context."""
        rival = self.best(CONTEXT)
        return pays_back(line, rival) if rival is not None and line.kind in (FROZEN, TUNED) else None

    def advice(self) -> tuple[str, ...]:
        """What the figures say about the need to tune, a sentence each."""
        untuned, tuned = self.best(RULE, CONTEXT, FROZEN), self.best(TUNED)
        said = [*self.floor()]
        if tuned is None or untuned is None:
            best = self.best(RULE, CONTEXT, FROZEN, TUNED)
            assert best is not None
            lacking = "tuned" if tuned is None else "untuned"
            said.append(f"Best: {best.name}, {best.score:.1%} ({wide(best.interval)}).")
            return (*said, f"Nothing {lacking} is among them, so these rows do not say whether tuning helps.")
        return (*said, self.verdict(tuned, untuned), *self.doubts(), *self.cost(tuned))

    def verdict(self, tuned: Line, untuned: Line) -> str:
        gap, low, high = self.difference(tuned, untuned)
        shown = f"{100 * gap:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
        if low > 0:
            return f"Tuning helps on these rows: {tuned.name} beats {untuned.name} ({shown})."
        if high < 0:
            return f"Tuning does not help on these rows: {untuned.name} beats {tuned.name} ({shown})."
        return f"These {self.rows:,} rows do not tell {tuned.name} from {untuned.name} ({shown}, which holds 0)."

    def doubts(self) -> list[str]:
        """The best of several was picked on the rows it is shown on."""
        several = [
            kinds for kinds in ((RULE, CONTEXT, FROZEN), (TUNED,)) if sum(x.kind in kinds for x in self.lines) > 1
        ]
        if not several:
            return []
        return ["The best of each side was picked on these very rows, which flatters it: confirm on other rows."]

    def floor(self) -> list[str]:
        """Where nothing is surely better than the most frequent answer."""
        rule, best = self.best(RULE), self.best(CONTEXT, FROZEN, TUNED)
        if rule is None or best is None or self.difference(best, rule)[1] > 0:
            return []
        return [f"Nothing here is surely better than {rule.name} ({rule.score:.1%})."]

    def cost(self, tuned: Line) -> list[str]:
        rival, queries = self.best(CONTEXT), self.back(tuned)
        if rival is None or queries is None:
            return []
        if queries == inf:
            return [f"A query of {tuned.name} costs no less than one of {rival.name}: in FLOPs it never pays back."]
        return [f"In FLOPs {tuned.name} is cheaper than {rival.name} from query {max(queries, 1):,.0f} on."]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: rows, measure, lines with what they differ from the best untuned, advice."""
        rival = self.best(RULE, CONTEXT, FROZEN)
        lines = []
        for line in self.lines:
            found = line.to_dict() | {"pays_back": finite(self.back(line))}
            if rival is not None and line is not rival:
                gap, low, high = self.difference(line, rival)
                found["to_best_untuned"] = {"name": rival.name, "difference": gap, "interval": [low, high]}
            lines.append(found)
        return {"rows": self.rows, "measure": self.measure, "lines": lines, "advice": list(self.advice()),
                "intervals": CONFIDENCE, "flops": WORK, "notes": list(self.notes)}  # fmt: skip

    def __repr__(self) -> str:
        return "\n".join([*aligned(self.table()), "", *self.advice()])

    def table(self) -> list[list[str]]:
        """Heading and a row of text per line."""
        head = [f"{self.rows:,} rows", self.measure, "95 %", "training FLOPs", "FLOPs a query", "disk", "pays back"]
        return [head, *([line.name, f"{line.score:.1%}", wide(line.interval), work(line.training), work(line.query),
                         size(line.disk), self.shown_back(line)] for line in self.lines)]  # fmt: skip

    def shown_back(self, line: Line) -> str:
        queries = self.back(line)
        if queries is None:
            return ""
        return "never" if queries == inf else f"query {max(queries, 1):,.0f}"


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    made = ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in cells]  # fmt: skip
    return [made[0], "-" * len(made[0]), *made[1:]]


def finite(queries: float | None) -> float | str | None:
    return "never" if queries == inf else queries


def wide(interval: intervals.Interval) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def work(flops: float | None) -> str:
    return "?" if flops is None else f"{flops:.1e}" if flops else "0"


def size(found: int | None) -> str:
    """Bytes as people read them."""
    if found is None:
        return "?"
    for unit, step in (("MB", 1e6), ("kB", 1e3)):
        if found >= step:
            return f"{found / step:.3g} {unit}"
    return f"{found} B"
