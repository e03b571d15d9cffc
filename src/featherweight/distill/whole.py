"""A distillation from folder to folder: the recipe's stages as runs, the student as a model, the control, the report.

    OUT/student/               the student: a plain model folder; with adapters on it (--method lora) what they sit on
    OUT/run/                   the run, as fw.train leaves it; of several stages one folder each, by their names
    OUT/control/               the same student on labels alone, for as many steps
    OUT/teacher/               the teacher's outputs, where they are cached
    OUT/report.json report.png

Everything is made of the same inputs by the same seeds, so that to resume is to go the same way again: a stage that is
over is read from its last checkpoint, one that is not goes on from it.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError
from featherweight.core.merge import merge
from featherweight.core.method import Method
from featherweight.data.load import Data
from featherweight.distill.cache import TeacherCache
from featherweight.distill.recipes import Recipe
from featherweight.distill.report import DistillReport, distill_report, picture
from featherweight.distill.verb import distill
from featherweight.files.staged import staged, write_text
from featherweight.methods import Full
from featherweight.tasks import Task
from featherweight.train.run import Run, train

STUDENT, CONTROL, TEACHER, REPORT = "student", "control", "teacher", "report"


@dataclass(frozen=True)
class Stage:
    """One run: the folder it is in, its recipe, and settings over those of all stages."""

    name: str
    recipe: Recipe
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Distillation:
    """What came of it. `adapter` is the folder of the adapters on the student, None where it is a plain model;
    `report` None with the reason in `why`."""

    student: Path
    adapter: Path | None
    runs: dict[str, Run]
    report: DistillReport | None
    why: str = ""


def whole(folder: Path, student: Any, teacher: Any, data: Data, stages: Sequence[Stage], *, task: Task | None = None,
          method: Method | None = None, cache: TeacherCache | None = None, control: bool = False,
          rounds: int = 15, say: Callable[[str], None] = print, **values: Any) -> Distillation:  # fmt: skip
    """Train `student` by all stages into `folder`, and report. `method` None trains all of it.

    cache: its folder is made one for each stage where there are several. values: what `fw.train` takes.
    """
    plain = method is None
    if not plain:
        written(student, folder / STUDENT)
        student.name_or_path = str(folder / STUDENT)
    alone = deepcopy(student) if control else None
    runs: dict[str, Run] = {}
    for number, stage in enumerate(stages):
        say(f"stage {number + 1} of {len(stages)}: {stage.recipe!r}, in {folder / stage.name}")
        attached = None if number and not plain else method or Full()
        kept = cache and (cache if len(stages) == 1 else replace(cache, folder=Path(cache.folder) / stage.name))
        runs[stage.name] = distill(student, teacher, data, stage.recipe, task, method=attached, cache=kept,
                                   output=folder / stage.name, **{**values, **stage.settings})  # fmt: skip
        if plain:
            merge(student)
    if plain:
        written(student, folder / STUDENT)
    last = folder / stages[-1].name
    if alone is not None:
        beside(folder / CONTROL, alone, data, task or student.task, method, sum(r.steps for r in runs.values()), values)
    report, why = reported(folder, student, teacher, data, alone, rounds)
    return Distillation(folder / STUDENT, None if plain else last, runs, report, why)


def beside(folder: Path, student: Any, data: Data, task: Task, method: Method | None, steps: int,
           values: Mapping[str, Any]) -> None:  # fmt: skip
    """The control: the same student on labels alone for as many steps."""
    rest = {k: v for k, v in values.items() if k not in ("epochs", "steps")}
    train(student, data, task, method=method or Full(), output=folder, steps=steps, **rest)
    if method is None:
        merge(student)
        written(student, folder / STUDENT)


def reported(folder: Path, student: Any, teacher: Any, data: Data, control: Any,
             rounds: int) -> tuple[DistillReport | None, str]:  # fmt: skip
    """The report, written; or why there is none."""
    device = next(student.parameters()).device
    for model in (teacher, control):
        if model is not None:
            model.to(device)
    try:
        report = distill_report(student, teacher, data, control=control, rounds=rounds)
    except InputError as error:  # rows without labels, tasks without classes: the student is there all the same
        more = f" and {len(error.problems) - 1:,} more" if len(error.problems) > 1 else ""
        return None, f"no report: {error.problems[0]}{more}"
    write_text(folder / f"{REPORT}.json", json.dumps(finite(report.to_dict()), indent=1, ensure_ascii=False) + "\n")
    picture(report, folder / f"{REPORT}.png")
    return report, ""


def finite(value: Any) -> Any:
    """Numbers that JSON has not as text."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def written(model: Any, folder: Path) -> None:
    """A plain model with its tokenizer, whole or not at all."""
    with staged(folder) as beside:
        beside.mkdir()
        model.save_pretrained(beside)
        model.tokenizer.save_pretrained(beside)
        shutil.rmtree(folder, ignore_errors=True)
