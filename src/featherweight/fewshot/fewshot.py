"""`fw.fewshot`: a suite of few-shot tasks, each trained and scored alike."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.fewshot.figures import Answers, Figures, of_task
from featherweight.fewshot.jobs import Job, prepared, suite_of
from featherweight.fewshot.part import Bench
from featherweight.fewshot.submit import submitted
from featherweight.fewshot.suite import Suite
from featherweight.files.staged import write_text
from featherweight.train.log import suite
from featherweight.train.output import flat
from featherweight.train.ranks import ranks
from featherweight.train.recipes import recipe_of, under
from featherweight.train.settings import FREE, settings

REQUEST, RESULTS = "suite.json", "results.json"
Say = Callable[[str], None]


def silent(text: str) -> None:
    """Nobody is told."""


def fewshot(model: Any, suite: Suite | str, folder: str | os.PathLike[str], *, output: str | os.PathLike[str],
            seeds: Sequence[int] = (0,), tasks: Sequence[str] = (), rows: int | None = None, submit: str | None = None,
            start: str | os.PathLike[str] | None = None, recipe: Any = "tfew", resume: bool = False, say: Say = silent,
            **values: Any) -> Figures:  # fmt: skip
    """Train `model` on each task of a suite in `folder` once for every seed, and score it.

    model: a path or hub name; the base is loaded once and is itself again after each run.
    suite: "fewglue", "raft", "tfew", or the noun (`RAFT(folds=10)`).
    output: each run has its folder in it (<task>/seed-0), and results.json the table; with resume=True runs that are
    over are read, and the one that was cut goes on.
    tasks: some of them, by name. rows: at most so many rows to answer for a task, drawn once.
    submit: the file in each task's folder (or, for one task, a path) whose unlabelled rows are answered for RAFT's
    leaderboard by a run on all labelled rows, of the first seed.
    start: the folder of an adapter that every run goes on with, as T-Few does from its (IA)³ on a mixture.
    recipe, values: as in `fw.train`. Raises InputError over every bad row of every task before anything is trained.
    """
    chosen = suite_of(suite)
    raise_all(unfit(model, seeds, rows, start, values))
    wanted = settings(under(recipe_of(recipe), settings_in(values)))
    jobs = prepared(chosen, Path(folder), seeds, tasks, rows, submit)
    place = Path(output)
    asked = {"suite": chosen.to_dict(), "model": os.fspath(model), "rows": rows, "recipe": name_of(recipe),
             "from": os.fspath(start or ""), **{k: plain(v) for k, v in values.items() if k not in FREE}}  # fmt: skip
    claimed(place, asked, resume)
    live, task = base(model, recipe, wanted, values)
    write_text(place / REQUEST, json.dumps(asked, indent=1) + "\n")
    bench = Bench(live, task, {"recipe": recipe, **{k: v for k, v in values.items() if k != "quantize"}}, resume,
                  os.fspath(start or ""))  # fmt: skip
    return worked(bench, jobs, place, seeds[0], say)


def worked(bench: Bench, jobs: Sequence[Job], place: Path, seed: int, say: Say) -> Figures:
    """The figures of all tasks; results.json has those that are done."""
    found = Figures(place, [])
    with suite():
        for job in jobs:
            answers = scored(bench, job, place, say)
            done = [of_task(job.name, answers)] if answers else []
            files = {}
            if job.unlabelled is not None:
                files[job.name] = submitted(bench, job.unlabelled, job.prompts, job.template, place, seed, say)
            found = Figures(place, [*found.tasks, *done], {**found.submissions, **files})
            write_text(place / RESULTS, json.dumps(found.to_dict(), indent=1) + "\n")
    return found


def unfit(model: Any, seeds: Sequence[int], rows: int | None, start: Any, values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the call itself."""
    found = []
    if start is not None and values.get("method") is not None:
        fix = "leave out start or method"
        found.append(Problem("an adapter that is gone on with keeps its method", "method", fix=fix))
    if not isinstance(model, str | os.PathLike):
        found.append(Problem("not a place of a model", "model", "a path or hub name", type(model).__name__))
    if not seeds or min(seeds) < 0:
        found.append(Problem("no seeds", "seeds", "one or more whole numbers from 0", str(list(seeds))))
    if rows is not None and rows < 1:
        found.append(Problem("no rows to answer", "rows", "at least 1", str(rows)))
    return found


def claimed(place: Path, asked: Mapping[str, Any], resume: bool) -> None:
    """Raise InputError where results of something else would be lost or mixed up."""
    file = place / REQUEST
    if place.is_dir() and any(place.iterdir()) and not (resume and file.is_file()):
        fix = "resume what is in it, or choose another output"
        raise InputError(Problem("the output folder is not empty", str(place), fix=fix))
    now = flat(json.loads(json.dumps(asked)))
    if file.is_file():
        then = flat(json.loads(file.read_text(encoding="utf-8")))
        raise_all(Problem("changed since it began", key, repr(then.get(key)), repr(now.get(key)), "put it back")
                  for key in dict.fromkeys([*then, *now]) if then.get(key) != now.get(key))  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)


def base(model: Any, recipe: Any, wanted: Any, values: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model on its device, and the task that its answers are ranked by."""
    from featherweight.tasks import task_for
    from featherweight.train import setup

    followed, config = recipe_of(recipe), setup.config(model)
    task = values.get("task") or (followed.task(config) if followed else task_for("choices", config))
    live = setup.base(model, task, wanted, values.get("quantize"))
    return live.to(ranks(wanted.device).device), task


def scored(bench: Bench, job: Job, place: Path, say: Say) -> list[list[Answers]]:
    """The answers of each seed's parts."""
    found = []
    for seed, parts in job.seeds.items():
        made = []
        for part in parts:
            folder = place / job.name / f"seed-{seed}" / part.name
            say(f"{job.name}, seed {seed}{', ' + part.name if part.name else ''}: {len(part.train)} rows to train on, "
                f"{len(part.test)} to answer")  # fmt: skip
            made.append(bench.run(part, job.prompts, job.template, folder, seed))
        if made:
            found.append(made)
    return found


def settings_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the keywords of a run."""
    return {k: v for k, v in values.items() if k not in ("method", "task", "quantize")}


def name_of(recipe: Any) -> str | None:
    """The word for a recipe, however it was given."""
    found = recipe_of(recipe)
    return None if found is None else type(found).__name__.lower()


def plain(value: Any) -> Any:
    """A noun's file form; everything else as it is."""
    return value.to_dict() if hasattr(value, "to_dict") else value
