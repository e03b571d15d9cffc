"""A suite: a folder of tasks, and for each task and seed what is trained on and what is answered."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import ClassVar

from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.core.noun import Noun
from featherweight.data.load import collect
from featherweight.data.prompt_sets import Prompts
from featherweight.data.templates import prompted
from featherweight.data.types import Rows


@dataclass(frozen=True, eq=False)
class Part:
    """One training run and the rows that it is scored on. `name` tells the parts of a seed apart; "" is the only one.
    `file`: what the training rows are all of, where they are."""

    name: str
    train: Rows
    test: Rows
    file: str = ""


@dataclass(frozen=True, repr=False)
class Suite(Noun):
    """Base of every suite. `templates`: the tasks, each with its set of prompt templates."""

    about: ClassVar[str] = ""
    published: ClassVar[str] = ""  # figures of others, to stand beside ours
    templates: ClassVar[Mapping[str, str]] = {}
    folders: ClassVar[Mapping[str, str]] = {}  # of tasks whose folder has another name

    @abstractmethod
    def files(self, folder: Path) -> tuple[Path, ...]:
        """All files of the task in this folder."""

    @abstractmethod
    def parts(self, held: Mapping[Path, Rows], folder: Path, seed: int) -> list[Part]:
        """The runs of one seed, from the rows of its files. Raises InputError for a seed that there is no data for."""

    def chosen(self, home: Path, tasks: Sequence[str] = ()) -> dict[str, Path]:
        """The tasks that are asked for, or all whose folders are there. Raises InputError for any that is not."""
        known = {task: home / self.folders.get(task, task) for task in self.templates}
        raise_all(
            Problem("no such task", "tasks", got=repr(task), fix=did_you_mean(task, known))
            for task in tasks
            if task not in known
        )
        wanted = {task: known[task] for task in tasks or known}
        there = {task: place for task, place in wanted.items() if place.is_dir()}
        if not there:
            holds = f"folders {listed([place.name for place in known.values()])}"
            raise InputError(Problem("no task of the suite is there", str(home), holds))
        raise_all(Problem("no folder of the task", str(wanted[task])) for task in tasks if task not in there)
        return there


def sampled(part: Part, most: int | None) -> Part:
    """At most so many of the rows to answer, drawn once."""
    if most is None or most >= len(part.test):
        return part
    kept = sorted(Random("rows").sample(range(len(part.test)), most))
    return replace(part, test=Rows([part.test[i] for i in kept], part.test.notes))


def verified(rows: Rows, prompts: Prompts, problems: list[Problem], answers: bool = True) -> None:
    """Whether every template of a set fits all rows; what does not becomes problems, each once."""
    found: list[Problem] = []
    collect(found, prompted, rows, prompts, every=True, answers=answers)
    problems.extend(dict.fromkeys(found))
