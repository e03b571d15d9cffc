"""What a suite's runs say: by task the median over seeds and its quartiles, beside what no training gives.

    most frequent   the share of rows whose label is the training rows' most frequent one
    before          the model as it came, asked by the same templates
    accuracy, F1    of the probabilities averaged over the templates; F1 is the mean over classes, as RAFT ranks
    by template     the median over templates of each one's accuracy, as T-Few reports it

The parts of a seed (folds) are pooled before anything is computed of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from featherweight.tasks import metrics
from featherweight.train.repeats import Spread, spread


@dataclass(frozen=True)
class Answers:
    """What one run answered, by the numbers of the choices; `templates`: each template's predictions."""

    references: list[int]
    predictions: list[int]
    templates: dict[str, list[int]]
    before: list[int]
    trained_on: list[int]  # the labels of the training rows


@dataclass(frozen=True)
class TaskFigures:
    """One task: training rows (of a part), answered rows (of a seed), and the spread over seeds of each figure."""

    name: str
    train: int
    test: int
    seeds: int
    figures: Mapping[str, Spread]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        counts = {"train": self.train, "test": self.test, "seeds": self.seeds}
        return counts | {name: asdict(found) for name, found in self.figures.items()}


@dataclass(frozen=True)
class Figures:
    """All tasks of a suite; `submissions`: the files written for rows without labels."""

    output: Path
    tasks: Sequence[TaskFigures]
    submissions: Mapping[str, Path] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Of the tasks' medians."""
        names = self.tasks[0].figures if self.tasks else ()
        return {name: mean(task.figures[name].median for task in self.tasks) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """The form of results.json."""
        return {
            "output": str(self.output), "tasks": {task.name: task.to_dict() for task in self.tasks},
            "means": self.means, "submissions": {task: str(file) for task, file in self.submissions.items()},
        }  # fmt: skip


def of_task(name: str, seeds: Sequence[Sequence[Answers]]) -> TaskFigures:
    """The figures of a task from the answers of each seed's parts."""
    found = [of_seed(parts) for parts in seeds]
    figures = {key: spread([one[key] for one in found]) for key in found[0]}
    first = seeds[0]
    return TaskFigures(name, len(first[0].trained_on), sum(len(p.references) for p in first), len(seeds), figures)


def of_seed(parts: Sequence[Answers]) -> dict[str, float]:
    """Figures of all the rows that a seed's runs answered, each run its own."""
    right = [r for part in parts for r in part.references]
    made = [p for part in parts for p in part.predictions]
    constant = [most_frequent(part.trained_on) for part in parts for _ in part.references]
    alone = [[p for part in parts for p in part.templates[name]] for name in parts[0].templates]
    return {
        "most frequent": metrics.accuracy(constant, right),
        "before": metrics.accuracy([p for part in parts for p in part.before], right),
        "accuracy": metrics.accuracy(made, right),
        "F1": metrics.macro_f1([str(p) for p in made], [str(r) for r in right]),
        "by template": median(metrics.accuracy(one, right) for one in alone),
    }


def most_frequent(labels: Sequence[int]) -> int:
    """The label of most rows, the lowest of equals."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))
