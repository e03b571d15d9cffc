"""`plan`: what a run will need, before it runs, from the config alone.

The nouns are those of attach and quantize, and the step that is looked at is training's own, over tensors without
storage: nothing here knows a method, a format or an architecture.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

import featherweight.interop
import featherweight.kernels  # noqa: F401  # registered before anything is attached
from featherweight.core.count import trainable
from featherweight.core.method import Method
from featherweight.interop.transformers import dtype_of
from featherweight.plan import facts, files, shell, verbs
from featherweight.plan.begun import begun
from featherweight.plan.traced import Job, Trace, trace
from featherweight.plan.training import training_step
from featherweight.quant.recipe import Recipe
from featherweight.tasks import Task
from featherweight.train.recipes import RunRecipe, recipe_of, under
from featherweight.train.settings import Settings, settings

Bytes = Mapping[str, int]
NOTHING = Trace({}, {}, 0, 0)


@dataclass(frozen=True)
class Plan:
    """What a run needs. Bytes are those of tensors: the interpreter and its libraries come on top (`notes`)."""

    model: str
    method: Method | None
    scheme: Recipe | None
    task: Task
    batch: int
    length: int
    precision: str
    trainable: int
    total: int
    adapter_bytes: int  # of adapter_model.safetensors
    memory: Bytes  # by component, when a training step is at its peak
    resting: Bytes  # by component, between steps
    peaks: Bytes  # of loading, quantizing, generating, merging and saving
    kv_cache: int  # of `batch` rows of `length` tokens
    flops: int  # of a training step
    forward_flops: int  # of its forward pass
    token_flops: int  # of one more token of one row when writing on
    largest_block: int  # bytes of the largest block's frozen weights: what sharding gathers at a time
    tokens: int = 0  # of all texts of the step
    data: Mapping[str, Any] = field(default_factory=dict)  # rows, cut rows, tokens an epoch, steps an epoch
    seconds: float | None = None  # a training step, where it was tried
    notes: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The most of all: of training, and of what comes before and after it."""
        return max(self.train_bytes, *self.peaks.values())

    @property
    def train_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def share(self) -> float:
        """Trainable over total, in percent."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        form = {k: v for k, v in asdict(self).items() if k not in ("method", "scheme", "task")}
        nouns = {"method": self.method, "scheme": self.scheme, "task": self.task}
        return form | {k: None if v is None else v.to_dict() for k, v in nouns.items()} | {
            "train_bytes": self.train_bytes, "peak_bytes": self.peak_bytes,
        }  # fmt: skip


def plan(source: Any = None, method: Method | None = None, scheme: Any = None, *, task: Task | None = None,
         start: str | os.PathLike[str] | None = None, data: Any = None, columns: Any = None,
         template: str | None = None, recipe: RunRecipe | str | None = None, head: bool | str = "auto",
         over: Mapping[str, Any] | None = None, probe: bool = False, **values: Any) -> Plan:  # fmt: skip
    """Plan training `method` on a model (a config, a live model, a folder, a config.json, a hub name).

    values: `batch`, `length`, `precision`, `optimizer`, `checkpointing`, `packing` and every other setting of
    training, spelt as there, and so are `task`, `columns`, `template` and `recipe`. Without a method (its own, or the
    recipe's) only using the model is planned. With `data` the step is one of its longest rows, and what an epoch will
    do is added (needs the model's tokenizer); `probe` runs three real steps on random weights and adds their time.
    scheme: a number format for the base, or a Recipe, or the file form of either.
    start: folder of an adapter to go on training, on `source` or (None) on the base that it names; its head trains
    along where it did. head, over: as `attach` and training have them.
    Raises InputError for a config that makes no model, an architecture nobody can see, rows that training would refuse,
    and whatever attach or quantize would.
    """
    followed = recipe_of(recipe)
    chosen = settings(under(followed, values))
    if start is not None:
        there = begun(start, source, method, scheme, task)
        source, method, scheme, task, head = there.source, there.method, there.scheme, there.task, there.head
        over = {**there.over, **(over or {})}
    about = subject(source, chosen, task=task, recipe=followed, data=data, columns=columns, template=template,
                    head=head, over=over)  # fmt: skip
    return planned(about, method or (followed.method if followed else None), scheme, chosen, probe)


def subject(source: Any, chosen: Settings, **given: Any) -> facts.Subject:
    """What a plan is of; see `facts.subject`."""
    return facts.subject(shell.config_of(source), source, chosen, **given)


def planned(about: facts.Subject, method: Method | None, scheme: Any, chosen: Settings, probe: bool = False) -> Plan:
    """`plan` of a subject that is read already."""
    wanted, found = about.task, next(iter(Recipe.of(scheme)), None)
    model = made(about, method, found, chosen.precision)
    about = about.beside(model, chosen)
    batch = about.batch(chosen)
    counts, block = trainable(model), largest_block(model)
    peaks = verbs.peaks(model, found is not None)
    size = files.adapter_bytes(model) if method is not None else 0
    seen = trace(model, jobs(wanted, method, chosen, batch))
    step, answer = seen.get("train", NOTHING), seen["answer"]
    peaks["generate" if wanted.generates else "predict"] = round(sum(answer.peak.values()))
    if method is not None and method.mergeable:
        peaks["merge"] = merge_bytes(about, method, found)
    return Plan(
        model=name_of(about.config), method=method, scheme=found, task=wanted, batch=chosen.batch, length=about.length,
        precision=chosen.precision, trainable=counts.trainable, total=counts.total, adapter_bytes=size,
        memory=whole(step.peak), resting=whole(step.resting), peaks=peaks,
        kv_cache=round(answer.resting.get(verbs.CACHE, 0)), flops=round(step.flops),
        forward_flops=round(step.forward_flops or answer.forward_flops),
        token_flops=round(answer.flops / chosen.batch) if wanted.generates else 0, largest_block=block,
        tokens=sum(map(int, batch["attention_mask"].sum(1))),
        data=facts.of_data(about.rows, chosen) if about.rows else {},
        seconds=verbs.probe(made(about, method, found, chosen.precision), wanted, chosen, batch) if probe else None,
        notes=about.notes(chosen),
    )  # fmt: skip


def train_bytes(about: facts.Subject, method: Method, scheme: Any, chosen: Settings) -> int:
    """`planned(...).train_bytes` alone, in a third of the time."""
    model = made(about, method, next(iter(Recipe.of(scheme)), None), chosen.precision)
    batch = about.beside(model, chosen).batch(chosen)
    found = trace(model, {"train": jobs(about.task, method, chosen, batch)["train"]})
    return sum(whole(found["train"].peak).values())


def merge_bytes(about: facts.Subject, method: Method, scheme: Recipe | None) -> int:
    """The peak of `fw merge`, which adds in float32 whatever the run's precision."""
    stored = dtype_of(str(getattr(about.config, "dtype", None) or "fp32").removeprefix("torch."))
    found = trace(made(about, method, scheme, "fp32"), {"merge": verbs.merging(stored)})
    return round(sum(found["merge"].peak.values()))


def jobs(task: Task, method: Method | None, chosen: Settings, batch: Mapping[str, Any]) -> dict[str, Job]:
    """What is traced: answering, and with a method a step of training."""
    found: dict[str, Job] = {}
    if method is not None:
        found["train"] = training_step(task, chosen, batch)
    return found | {"answer": verbs.answering(task, batch)}


def made(about: facts.Subject, method: Method | None, recipe: Recipe | None, precision: str) -> nn.Module:
    """The model as training has it, on the meta device: quantized, with the adapter attached."""
    model = shell.built(about.config, about.task.auto, dtype_of(precision), about.task.model_options())
    if recipe is not None:
        shell.quantized(model, recipe)
    return shell.adapted(model, method, about.head, about.over) if method is not None else model


def whole(sizes: Mapping[str, float]) -> dict[str, int]:
    return {name: round(size) for name, size in sizes.items() if round(size)}


def largest_block(model: nn.Module) -> int:
    """Bytes of frozen tensors in the largest block."""
    sizes = [shell.frozen_bytes(block) for blocks in shell.blocks_of(model) for block in blocks]
    return max(sizes, default=shell.frozen_bytes(model))


def name_of(config: Any) -> str:
    return str(getattr(config, "name_or_path", "") or getattr(config, "_name_or_path", "") or config.model_type)
