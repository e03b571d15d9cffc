"""`fw distill`: a smaller model that keeps what a larger one does with your data, and a report of what it keeps."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.distill_config import DistillConfig, read_distill
from featherweight.cli.distill_help import distill_help
from featherweight.cli.nouns import placed
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem

FILE = "distill.toml"


def command(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> Shown:
    """Train a smaller model on what a larger one makes of your data."""
    if not words or "--help" in words or "-h" in words:
        return distill_help()
    config = read_distill(words)
    try:
        return report(config, distilled(config))
    except InputError as error:  # found while running: said where the user wrote it
        raise InputError(*(placed(p, config.origins, "") for p in error.problems)) from error


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def distilled(config: DistillConfig) -> Any:
    """The models, the rows, and everything that is made of them."""
    from featherweight.cli.base import fresh
    from featherweight.data.load import load
    from featherweight.distill.whole import Stage, whole

    folder = Path(config.output)
    if not config.settings.get("resume"):
        fresh(folder, "the output")
    teacher = taught(config)
    data = load(config.data, config.columns)
    student = learner(config, teacher, data)
    if config.quantize_teacher is not None:
        rounded(config, teacher, data)
    if config.augment is not None:
        from featherweight.distill.augment import augmented

        data = augmented(data, seed=config.settings.get("seed", 0), **asdict(config.augment))
        say(data.notes[-1])
    stages = [Stage(name, recipe, {} if i else first(config)) for i, (name, recipe) in enumerate(config.stages)]
    folder.mkdir(parents=True, exist_ok=True)
    recorded(config, folder / FILE)
    return whole(folder, student, teacher, data, stages, task=config.task, method=config.method, cache=config.cache,
                 control=config.control, rounds=config.rounds, say=say, **config.settings)  # fmt: skip


def first(config: DistillConfig) -> dict[str, Any]:
    """Settings of the first stage: its own steps replace the run's epochs and the other way round."""
    if {"epochs", "steps"} & config.first.keys():
        return {"epochs": None, "steps": None, **config.first}
    return config.first


def taught(config: DistillConfig) -> Any:
    """The teacher as a plain model: an adapter is folded into it."""
    from featherweight.cli.base import opened
    from featherweight.core.merge import merge
    from featherweight.core.switch import switch_of

    given = Path(config.teacher)
    adapter = given if (given / "adapter_config.json").is_file() else None
    if given.is_dir() and adapter is None and not (given / "config.json").is_file():
        raise InputError(Problem("no model in this folder", config.teacher, "a config.json or an adapter_config.json"))
    teacher, _ = opened(adapter, None if adapter else config.teacher, device="cpu")
    task = getattr(teacher, "task", None)
    if switch_of(teacher).active:
        merge(teacher)
    if config.task is None and task is not None:
        teacher.task = task
    return teacher


def rounded(config: DistillConfig, teacher: Any, data: Any) -> None:
    """Keep the teacher as codes, and say what that does to its answers where the rows can tell."""
    from featherweight.distill.rounding import quantized_teacher
    from featherweight.evaluate.setting import task_of
    from featherweight.quant.quantize import quantize

    plan = config.quantize_teacher
    places = {"targets": plan.targets, "skip": plan.skip}
    task = task_of(teacher, config.task, data.shape)
    if task.exclusive and (task.generates or task.fills or data.shape.labelled):
        say(str(quantized_teacher(teacher, plan.scheme, data, task, **places)))
    else:
        quantize(teacher, plan.scheme, **places)


def learner(config: DistillConfig, teacher: Any, data: Any) -> Any:
    """The student: made of the teacher, or the user's own."""
    from featherweight.distill.student import student

    if config.student is not None:
        from featherweight.interop import load_base

        return load_base(config.student, config.task or getattr(teacher, "task", None))
    sizes = {("keep" if k == "blocks" else k): v for k, v in config.made.items()}
    measured = {"data": data} if sizes.get("keep") == "importance" else {}
    return student(teacher, seed=config.settings.get("seed", 0), **measured, **sizes)


def recorded(config: DistillConfig, path: Path) -> None:
    """distill.toml: what was asked for, so that the file alone asks for it again."""
    from featherweight.files.staged import write_text
    from featherweight.train import toml
    from featherweight.train.document import recorded as named

    recipe = config.stages[0][1].to_dict()
    if len(config.stages) > 1:
        recipe = {k: v for k, v in recipe.items() if k not in config.stages[0][1].stages[0]}
    settings = {k: v for k, v in config.settings.items() if k != "resume"}
    form = {
        "teacher": config.teacher, "data": named(config.data), "output": config.output, "student": config.student,
        "control": config.control, "rounds": config.rounds,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in config.made.items()},
        **settings, "recipe": recipe,
        "task": config.task and config.task.to_dict(), "method": config.method and config.method.to_dict(),
        "quantize_teacher": config.quantize_teacher and config.quantize_teacher.to_dict(),
        "columns": config.columns, "first": config.first or None,
        "cache": config.cache and kept(config),
        "augment": config.augment and asdict(config.augment),
    }  # fmt: skip
    write_text(path, toml.dumps({k: v for k, v in form.items() if v is not None}))


def kept(config: DistillConfig) -> Any:
    """The cache; a folder of its own is named, that within the output is not."""
    form = {k: str(v) if k == "folder" else v for k, v in asdict(config.cache).items()}
    return {k: v for k, v in form.items() if v != str(Path(config.output) / "teacher")}


def report(config: DistillConfig, done: Any) -> Shown:
    """What came of it, and what to type next."""
    runs = {name: {"steps": run.steps, "seconds": run.seconds, "scores": run.scores} for name, run in done.runs.items()}
    data = {"output": config.output, "student": str(done.student), "adapter": done.adapter and str(done.adapter),
            "runs": runs, "report": done.report and done.report.to_dict(), "why": done.why}  # fmt: skip
    known = f"--adapter {done.adapter}" if done.adapter else f"--model {done.student}"
    lines = [str(done.report), f"picture: {Path(config.output) / 'report.png'}"] if done.report else [done.why]
    lines += [f"{name}: {run.steps} steps in {run.seconds:.1f} s" for name, run in done.runs.items()]
    return Shown(data, (*lines, f"student: {done.student}", f"next: fw predict {known} --data new.csv"))
