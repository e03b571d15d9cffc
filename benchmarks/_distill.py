"""The jobs of distill.py: data, teachers, students, and the arms that train them."""

import random
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import _real
import torch
from quant_quality import text

import featherweight as fw
from featherweight.distill import KD, DistilBERT, MiniLM, TinyBERT
from featherweight.methods import Full

LENGTH, EVERY = 256, 10**9
STAGES: dict[str, tuple[Any, ...]] = {
    "labels": (None,),
    "KD": (KD(),),
    "DistilBERT": (DistilBERT(),),
    "TinyBERT": (TinyBERT("layers"), TinyBERT("prediction")),
    "MiniLM, then KD": (MiniLM(), KD()),
    "MiniLM v2, then KD": (MiniLM(version=2), KD()),
    "labels, base's blocks": (None,),
}
ARMS = tuple(STAGES)


@dataclass(frozen=True)
class Job:
    """One teacher and its rows. `words` is True where what is measured are nats a token rather than accuracy."""

    name: str
    made: Callable[[], dict[str, Any]]
    rates: tuple[float, ...]
    steps: int
    batch: int
    lessons: tuple[tuple[int, int, float], ...] = ()  # the teacher's own: steps, batch and rate; none: as it is
    words: bool = False

    @property
    def base_too(self) -> bool:
        """Whether the teacher was another model before."""
        return bool(self.lessons)

    @property
    def method(self) -> Any:
        return Full() if self.words else Body()

    @property
    def data(self) -> dict[str, Any]:
        return rows_of(self)

    @property
    def task(self) -> Any:
        return start(self)[1]

    def student(self, teacher: Any) -> Any:
        return fw.student(teacher, layers=3)


@cache
def rows_of(job: Job) -> dict[str, Any]:
    return job.made()


def held(data: dict[str, Any]) -> dict[str, Any]:
    """500 dev rows and 1,000 test rows: what there is time for."""
    return data | {"valid": _real.chosen(data["valid"], 500), "test": _real.chosen(data["test"], 1000)}


def stories() -> dict[str, Any]:
    """Rows of some 150 tokens: four fifths of the TinyStories sample to learn from, of the last fifth half is dev."""
    learn, held = chunks(text("tinystories train")), chunks(text("tinystories"))
    return {"train": learn, "valid": held[::2], "test": held[1::2]}


def chunks(whole: str, size: int = 480) -> list[dict[str, str]]:
    """Lines joined to rows of about so many characters."""
    rows, held = [], ""
    for line in whole.splitlines():
        if held and len(held) + len(line) > size:
            rows.append({"text": held})
            held = ""
        held = f"{held}\n{line}" if held else line
    return [*rows, {"text": held}]


class Body(Full):
    """All weights but the embeddings: they are half of the model, and a small run sees few of their rows."""

    def hosts(self, model: Any) -> Any:
        return [site for site in super().hosts(model) if not isinstance(site.module, torch.nn.Embedding)]


JOBS = (
    Job("banking77", lambda: held(_real.banking77(10**9)), (2e-4, 5e-4), 80, 16, ((400, 16, 5e-4), (400, 16, 5e-4))),
    Job("tinystories", stories, (1e-3, 3e-3), 100, 8, (), True),
    Job("sst2", lambda: held(_real.sst2(10**9)), (2e-4, 6e-4), 80, 16, ((300, 16, 2e-4),)),
)


def start(job: Job) -> tuple[Any, Any]:
    """The model before the teacher's own lesson, and the task."""
    return _real.writer("stories", 0) if job.words else _real.classifier(job.data, 0)


@cache
def teacher_of(job: Job) -> Any:
    """The teacher after all of its lessons; each is kept on disk, for it is one for all arms and seeds."""
    model, task = start(job)
    for number, (steps, batch, rate) in enumerate(job.lessons):
        path = Path(tempfile.gettempdir()) / f"featherweight-{job.name}-{hash_of(job.lessons[: number + 1])}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path))
            continue
        fw.train(model, {"train": drawn(job, steps * batch, number)}, task, method=job.method, steps=steps, batch=batch,
                 lr=rate, length=LENGTH, seed=number, warmup=0.06, best=False, log=EVERY)  # fmt: skip
        fw.merge(model)
        staged = path.with_suffix(".part")
        torch.save(model.state_dict(), staged)
        staged.rename(path)
    return model.eval()


def hash_of(lessons: Any) -> str:
    return sha256(repr(lessons).encode()).hexdigest()[:12]


def drawn(job: Job, count: int, seed: int) -> list[Any]:
    """So many training rows of a seed's own, in one order; again from the first where there are not enough."""
    rows = random.Random(seed).sample(job.data["train"], len(job.data["train"]))
    return (rows * -(-count // len(rows)))[:count]


@cache
def untaught(job: Job) -> Any:
    """What the teacher was before its lesson."""
    return start(job)[0].eval()


def trained(job: Job, arm: str, rate: float, seed: int) -> tuple[Any, dict[str, Any]]:
    """A student after all of an arm's stages, and the seconds of their loops."""
    teacher = teacher_of(job)
    student = job.student(untaught(job) if arm == ARMS[-1] else teacher)
    rows, seconds = {"train": drawn(job, job.steps * job.batch, seed)}, 0.0
    stages = STAGES[arm]
    for number, recipe in enumerate(stages):
        given: dict[str, Any] = {"steps": job.steps // len(stages), "batch": job.batch, "lr": rate, "length": LENGTH,
                                 "seed": seed + 100 * number, "warmup": 0.06, "best": False, "log": EVERY}  # fmt: skip
        given |= {"method": job.method} if number == 0 else {}
        if recipe is None:
            seconds += fw.train(student, rows, job.task, **given).seconds
        else:
            seconds += fw.distill(student, teacher, rows, deepcopy(recipe), job.task, **given).seconds
    return student.eval(), {"seconds": round(seconds, 1)}
