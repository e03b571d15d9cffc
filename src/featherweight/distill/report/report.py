"""`distill_report`: what a student costs and keeps of its teacher, beside a control: one trained on labels alone.

Without the control nobody can tell what the teacher did: a small model may be as good without one.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.distill.report import cost
from featherweight.distill.report.compared import BINS, Answers, Interval, answers, difference, mean_difference, share
from featherweight.evaluate.evaluate import score
from featherweight.evaluate.setting import task_of, tokenizer_of, with_labels
from featherweight.evaluate.source import labelled
from featherweight.tasks.check import check_length
from featherweight.tasks.task import Task
from featherweight.train.feed import units

CHOSEN = 5  # classes that lines() shows: those that lost most


@dataclass(frozen=True)
class Member:
    """One model. Parameters of the transformer (with heads and active adapters) and of embedding tables; `bytes` that
    saving writes; `scores` with the `loss` (nats a unit); `ece`; `seconds` of a forward by batch size, medians."""

    transformer: int
    embedding: int
    bytes: int
    scores: dict[str, float]
    ece: float
    seconds: dict[int, float]

    @property
    def parameters(self) -> int:
        return self.transformer + self.embedding


@dataclass(frozen=True)
class PerClass:
    """One class: how many rows are of it, the share found by each, and student less teacher with its interval."""

    name: str
    rows: int
    teacher: float
    student: float
    difference: Interval


@dataclass(frozen=True)
class DistillReport:
    """Everything that is said of a student. `agreement` is the share of units that teacher and student answer alike;
    `kl` KL(teacher ‖ student) in nats; `faster` by batch size; `gained` the student's right answers less the control's,
    as a share of all; `saved` its loss less the control's, in nats (below 0 is better)."""

    teacher: Member
    student: Member
    control: Member | None
    metric: str
    split: str
    rows: int
    units: int
    agreement: Interval
    kl: float
    lost: Interval  # the student's right answers less the teacher's
    gained: Interval | None
    saved: Interval | None
    faster: dict[int, Interval]
    classes: tuple[PerClass, ...]
    hardware: str
    bins: int = BINS
    notes: tuple[str, ...] = field(default=())

    def kept(self, member: Member) -> float:
        """% of the teacher's score; of a loss its perplexity's inverse, so that 100 is as good in either case."""
        mine, theirs = member.scores[self.metric], self.teacher.scores[self.metric]
        if self.metric == "loss":
            return 100 * math.exp(min(700.0, theirs - mine))
        return 100 * mine / theirs if theirs else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {**asdict(self), "kept": self.kept(self.student)}
        found |= {"control_kept": self.kept(self.control)} if self.control else {}
        for name in ("teacher", "student", "control"):
            member: Member | None = getattr(self, name)
            if member is not None:
                found[name] |= {
                    "parameters": member.parameters,
                    "seconds": {str(k): v for k, v in member.seconds.items()},
                }
        intervals = {name: interval(getattr(self, name)) for name in ("agreement", "lost", "gained", "saved")}
        faster = {str(batch): interval(value) for batch, value in self.faster.items()}
        classes = [{**asdict(c), "difference": interval(c.difference)} for c in self.classes]
        return found | intervals | {"faster": faster, "classes": classes}

    def __str__(self) -> str:
        from featherweight.distill.report.lines import lines

        return "\n".join(lines(self))


def interval(given: Interval | None) -> dict[str, float] | None:
    return None if given is None else given._asdict()


def distill_report(student: Any, teacher: Any, data: Any, *, control: Any = None, task: Task | None = None,
                   tokenizer: Any = None, split: str | None = None, columns: Any = None, length: int | None = None,
                   batch: int = 32, rounds: int = cost.ROUNDS) -> DistillReport:  # fmt: skip
    """Compare a student with its teacher, and with `control`: the same student trained on labels alone.

    student, teacher, control: live models. data: what `fw.evaluate` takes, labelled; `split` is the first of test,
    valid, train that has rows. Speeds are of forwards of 1 and 8 of these rows, all models in turn for `rounds` rounds.

    Raises InputError for a task without a distribution over classes or words, and over rows that cannot be compared.
    """
    name, examples, shape = labelled(data, split, columns)
    models = {"teacher": teacher, "student": student} | ({} if control is None else {"control": control})
    chosen = with_labels(task_of(student, task or getattr(teacher, "task", None), shape), teacher)
    words = tokenizer_of(student, tokenizer)
    raise_all([*unfit(chosen, rounds), *apart(models)])
    rows = chosen.encode_all(examples, words, check_length(student, length))
    bare = [
        Problem("nothing to compare with", r.where, "a labelled row") for r in rows if r.labels is None or not units(r)
    ]
    raise_all(bare)
    found = answers(models, chosen, rows, words, batch)
    times = {
        size: cost.latencies(models, batch_of(rows, size, student, words), chosen, rounds) for size in cost.BATCHES
    }
    members = {
        who: Member(*cost.parameters(model), cost.stored(model), scored(model, chosen, examples, words, batch, rows),
                    found[who].ece, {size: statistics.median(t[who]) for size, t in times.items()})
        for who, model in models.items()
    }  # fmt: skip
    mine, theirs, alone = found["student"], found["teacher"], found.get("control")
    return DistillReport(
        teacher=members["teacher"], student=members["student"], control=members.get("control"),
        metric=chosen.best[0], split=name, rows=len(rows), units=len(mine.top),
        agreement=share(int((mine.top == theirs.top).sum()), len(mine.top)), kl=float(mine.kl.double().mean()),
        lost=difference(mine.right, theirs.right),
        gained=None if alone is None else difference(mine.right, alone.right),
        saved=None if alone is None else mean_difference(mine.nll, alone.nll),
        faster={size: cost.ratio(t["teacher"], t["student"]) for size, t in times.items()},
        classes=by_class(chosen, theirs, mine), hardware=cost.hardware(student), notes=told(control, theirs, name),
    )  # fmt: skip


def unfit(task: Task, rounds: int) -> list[Problem]:
    found = []
    if not task.exclusive:
        what = "this task has no distribution that a student could agree with"
        found.append(
            Problem(what, "task", "Classification, CausalLM or Seq2Seq", repr(task), "fw.evaluate scores both")
        )
    if rounds < 2:
        found.append(Problem("too few rounds for a ratio", "rounds", "at least 2", str(rounds)))
    return found


def apart(models: Mapping[str, nn.Module]) -> list[Problem]:
    """Speeds are compared on one device."""
    found = {name: str(next(model.parameters()).device) for name, model in models.items()}
    if len(set(found.values())) == 1:
        return []
    got = ", ".join(f"{name} on {device}" for name, device in found.items())
    return [Problem("the models are on several devices", "student", "one device", got, "move them with .to(device)")]


def told(control: Any, theirs: Answers, split: str) -> tuple[str, ...]:
    """What a reader should know of this comparison."""
    notes = []
    if control is None:
        notes.append("no control: train the same student on labels alone to see what the teacher did")
    if split == "train":
        notes.append("these are rows that were trained on: give a dev or test split")
    if len(theirs.top) < 200:
        notes.append(f"{len(theirs.top)} answers: the intervals say how little they tell")
    return tuple(notes)


def scored(model: nn.Module, task: Task, examples: Sequence[Any], tokenizer: Any, batch: int,
           rows: Sequence[Any]) -> dict[str, float]:  # fmt: skip
    """The task's metrics, and the loss."""
    made = score(model, task, examples, tokenizer, batch=batch, encoded=rows)
    if made.loss is None:
        raise InputError(Problem("no row has a label", rows[0].where))
    return {**made.values, "loss": made.loss}


def batch_of(rows: Sequence[Any], size: int, model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """`size` rows spread over all of them by length, as one batch."""
    from featherweight.data.collate import collate
    from featherweight.tasks.check import pad_id

    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    chosen = [ordered[(2 * i + 1) * len(ordered) // (2 * size)] for i in range(size)]
    return collate(chosen, pad_id(model, tokenizer)).tensors


def by_class(task: Task, theirs: Answers, mine: Answers) -> tuple[PerClass, ...]:
    """The classes of a task that has names for them, those that lost most first."""
    names = getattr(task, "labels", ())
    found = []
    for number, name in enumerate(names):
        here = mine.label == number
        if n := int(here.sum()):
            t, s = theirs.right[here], mine.right[here]
            found.append(PerClass(str(name), n, float(t.double().mean()), float(s.double().mean()), difference(s, t)))
    return tuple(sorted(found, key=lambda c: c.difference.value))
