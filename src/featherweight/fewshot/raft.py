"""RAFT: eleven classification tasks of 50 labelled rows each, whose test labels are nobody's to see.

The labelled rows are scored by cross-validation: each is answered once, by a run that was trained without it. For the
leaderboard a run on all 50 answers the unlabelled rows.
Source: Alex et al. 2021, arXiv:2109.14076. The twelfth task, on clinical notes, is not among the files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

from featherweight.core.errors import InputError, Problem
from featherweight.data.types import Rows
from featherweight.fewshot.suite import Part, Suite

TASKS = (
    "ade_corpus_v2", "banking_77", "neurips_impact_statement_risks", "one_stop_english", "overruling",
    "semiconductor_org_types", "systematic_review_inclusion", "tai_safety_research", "terms_of_service",
    "tweet_eval_hate", "twitter_complaints",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class RAFT(Suite):
    """`<task>/train.csv` with `<task>/task.json`, in so many `folds`: 50 leave out a row at a time, 0 score nothing."""

    folds: int = 5

    about: ClassVar[str] = "11 tasks of 50 rows, scored by cross-validation; a submission for unlabelled rows"
    published: ClassVar[str] = (
        "published, on secret test labels: T-Few 75.8, human 73.5, PET 69.6, SetFit 66.9, GPT-3 62.7 (Liu et al. 2022)"
    )
    templates: ClassVar[Mapping[str, str]] = {task: task for task in TASKS}

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise InputError(Problem("no cross-validation", "folds", "2 or more, or 0", str(self.folds)))

    def files(self, folder: Path) -> tuple[Path, ...]:
        return (folder / "train.csv",)

    def parts(self, held: Mapping[Path, Rows], folder: Path, seed: int) -> list[Part]:
        rows = held[folder / "train.csv"]
        if self.folds > len(rows):
            raise InputError(Problem("more folds than rows", "folds", f"at most {len(rows)}", str(self.folds)))
        dealt = deal(rows, self.folds, seed)
        return [
            Part(f"fold-{fold}", rows_of(rows, dealt, lambda at, fold=fold: at != fold),  # type: ignore[misc]
                 rows_of(rows, dealt, lambda at, fold=fold: at == fold))  # type: ignore[misc]
            for fold in range(self.folds)
        ]  # fmt: skip


def deal(rows: Rows, folds: int, seed: int) -> list[int]:
    """The fold of each row: every class is spread over the folds as evenly as can be, by the seed."""
    order = list(range(len(rows)))
    Random(f"folds/{seed}").shuffle(order)
    order.sort(key=lambda i: str(rows[i].fields.get("Label")))
    fold = [0] * len(rows)
    for place, i in enumerate(order):
        fold[i] = place % max(1, folds)
    return fold


def rows_of(rows: Rows, dealt: list[int], kept: Callable[[int], bool]) -> Rows:
    return Rows([row for row, fold in zip(rows, dealt, strict=True) if kept(fold)], rows.notes)
