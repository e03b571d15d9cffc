"""A submission: the rows without labels of a task, answered by a run on all its labelled rows.

<output>/submission/data/<task>/predictions.csv     ID,Label     as RAFT's leaderboard wants it
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featherweight.core.errors import Problem
from featherweight.data.load import collect
from featherweight.data.prompt_sets import Prompts
from featherweight.data.raft import submission
from featherweight.data.read import read
from featherweight.data.types import Rows
from featherweight.fewshot.part import Bench
from featherweight.fewshot.suite import verified
from featherweight.files.staged import write_text
from featherweight.tasks.ranked import best_of

TRAIN = "train.csv"


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """The rows to answer, and the file of those to train on."""

    task: str
    rows: Rows
    train: Path


def unlabelled(folder: Path, given: str, tasks: int, problems: list[Problem]) -> Unlabelled | None:
    """The rows of a file in the task's folder; of one task the file may be anywhere."""
    file = folder / given
    if not file.is_file() and tasks == 1 and Path(given).is_file():
        file = Path(given)
    if not (folder / TRAIN).is_file():
        fix = "the suite is scored on labelled rows alone: leave submit out"
        problems.append(Problem("no submission for this task", str(folder), f"a file {TRAIN}", fix=fix))
        return None
    rows = collect(problems, read, file)
    return None if rows is None else Unlabelled(folder.name, rows, folder / TRAIN)


def submitted(bench: Bench, given: Unlabelled, prompts: Prompts, template: str, place: Path, seed: int,
              say: Callable[[str], None]) -> Path:  # fmt: skip
    """Train on all labelled rows, answer, and write predictions.csv."""
    say(f"{given.task}, seed {seed}, all labelled rows: {len(given.rows)} to answer")
    folder = place / given.task / f"seed-{seed}" / "all"
    asked = bench.tuned(str(given.train), template, folder, seed, lambda: bench.ask(given.rows, prompts, False))
    file = place / "submission" / "data" / given.task / "predictions.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, submission(given.rows, [prompts.labels[best_of(p)] for p in asked.together]))
    return file


def checked(given: Unlabelled | None, prompts: Prompts, problems: list[Problem]) -> None:
    """Everything that is wrong with the rows to answer: empty texts, IDs that are missing or come twice."""
    if given is None:
        return
    verified(given.rows, prompts, problems, answers=False)
    collect(problems, submission, given.rows, [""] * len(given.rows))
