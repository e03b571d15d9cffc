"""From what the user gave to what the loop needs: rows encoded, task fitted, model loaded, adapter attached."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featherweight.core import state as core
from featherweight.core.attach import attach
from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.core.method import Method
from featherweight.core.room import wanted
from featherweight.core.switch import switch_of
from featherweight.data.load import Data, fitting, load
from featherweight.data.order import row_weights
from featherweight.data.packing import packable
from featherweight.data.rows import examples
from featherweight.data.types import Encoded, Example
from featherweight.kernels import fuse, unfuse
from featherweight.tasks import Task, task_for
from featherweight.tasks.check import check_causal, check_length, check_vocabulary, pad_id
from featherweight.train.evaluation import Dev
from featherweight.train.feed import Feed, units
from featherweight.train.ranks import Ranks
from featherweight.train.recipes import RunRecipe
from featherweight.train.seeds import derive, reseed
from featherweight.train.settings import Settings
from featherweight.train.step import Trained

Say = Callable[[str], None]
POLLED = 512  # rows encoded between two looks at the signals


@dataclass(frozen=True, eq=False)
class Material:
    """Data and task, before any model."""

    task: Task
    train: list[Example]
    dev: list[Example]
    weights: Sequence[float] | None
    name: str


def material(data: Any, task: Task | None, model: Any, columns: Any, say: Say) -> Material:
    """Read, shape and check the data. Raises InputError over every bad row, also of the dev split."""
    loaded = data if isinstance(data, Data) else load(data, columns)
    for note in loaded.notes:
        say(note)
    if loaded.train and not loaded.shape.labelled and loaded.shape.name in ("completion", "instruction"):
        raise InputError(unanswered(loaded))
    train = examples(loaded.train, loaded.shape)
    dev = examples(loaded.valid, fitting(loaded.valid, loaded.shape))
    if not train:
        raise InputError(Problem("no row to train on", "data", got=str(data)))
    chosen = task or getattr(model, "task", None) or task_for(loaded.shape, config(model))
    fitted = chosen.fit(train)
    raise_all([*fitted.check(train), *fitted.check(dev)])
    name = os.fspath(data) if isinstance(data, str | os.PathLike) else loaded.name or "rows in memory"
    return Material(fitted, train, dev, loaded.weights, name)


def worded(data: Any, template: str | None, columns: Any, seed: int) -> Any:
    """The data, its rows written by prompt templates where these are given."""
    if template is None:
        return data
    from featherweight.data.templates import trained_on

    return trained_on(data, template, seed, columns)


def config(model: Any) -> Any:
    """The config of a live model, or of a path; None where there is none."""
    if not isinstance(model, str | os.PathLike):
        return getattr(model, "config", None)
    from featherweight.interop.streamed import config_of
    from featherweight.interop.transformers import refusing

    with refusing(os.fspath(model)):
        return config_of(model, {})[0]


def advised(
    recipe: RunRecipe | None, model: Any, task: Task | None, method: Method | None, chosen: Settings, say: Say
) -> tuple[Task | None, Method | None]:
    """The task and method of a recipe where none is given; adapters that are there stay the ones that train."""
    if recipe is None:
        return task, method
    shape = config(model)
    bare = not isinstance(model, nn.Module) or not switch_of(model).attached
    method = method or (recipe.method if bare else None)
    task = task or recipe.task(shape)
    say(recipe.told(chosen.model_dump(exclude_none=True), method, task, shape))
    return task, method


def unanswered(data: Data) -> Problem:
    """Prompts alone train nothing: say where the answers were looked for."""
    role = {"completion": "completion", "instruction": "output"}[data.shape.name]
    seen = listed([str(c) for c in dict.fromkeys(key for row in data.train for key in row.fields)])
    where = data.train[0].where.rsplit(":", 1)[0]
    fix = f"name it: --columns {role}=…; answers inside of other fields need a file of their own"
    return Problem("the rows have no answers to train on", where, f"a column {role!r}", f"columns {seen}", fix)


def begun(
    model: Any, start: str | os.PathLike[str] | None, method: Method | None, name: str, quantize: Any = None
) -> Any:
    """The model with the adapter that is gone on with, where there is one. Raises InputError for a live model or a
    second method with it, and for a live model that is to be quantized."""
    if quantize is not None and model is not None and not isinstance(model, str | os.PathLike):
        raise InputError(Problem("a live model is not quantized on the way", "quantize", "a path of the base",
                                 type(model).__name__, "call fw.quantize(model, scheme) first"))  # fmt: skip
    if start is None:
        return model
    if method is not None:
        raise InputError(
            Problem("an adapter that is gone on with keeps its method", "method", fix="leave out start or method")
        )
    if model is not None and not isinstance(model, str | os.PathLike):
        raise InputError(Problem("a live model has its adapters already", "start", "a path of the base, or None",
                                 type(model).__name__, "load it with load_model(folder, train=True)"))  # fmt: skip
    from featherweight.interop import load_model

    return load_model(start, base=model, train=True, name=name, quantize=quantize)


def base(model: Any, task: Task, settings: Settings, quantize: Any = None) -> Any:
    """The live model, or the one loaded (and quantized on the way) from a path. Raises InputError where its head does
    not fit the task."""
    if isinstance(model, str | os.PathLike):
        from featherweight.interop import load_base

        seed = derive(settings.seed, "base") % 2**31
        return load_base(model, task, settings.precision, seed=seed, quantize=quantize)
    wanted, has = task.model_options().get("num_labels"), getattr(getattr(model, "config", None), "num_labels", None)
    if wanted is not None and has is not None and wanted != has:
        raise InputError(Problem("the model's head has another number of outputs than the data has labels", "model",
                                 str(wanted), str(has), "load it with num_labels, or give its path"))  # fmt: skip
    return model


def adapted(model: nn.Module, method: Method | None, name: str, seed: int) -> Trained:
    """Attach `method` where one is given; the methods and adapters that train. Raises InputError where none does."""
    if method is not None:
        reseed(seed, "init")
        attach(model, method, name)
    switch = switch_of(model)
    found = {n: (switch.attached[n].method, core.adapters(model, n)) for n in switch.active if switch.trains(n)}
    if not found:
        raise InputError(Problem("nothing to train", "method", "a method, or an active adapter marked to be trained",
                                 fix="give method=fw.LoRA(), or attach or switch with train=True"))  # fmt: skip
    return found


def same_start(model: nn.Module, trained: Trained, ranks: Ranks) -> None:
    """Every rank starts from the first one's trainable tensors."""
    if ranks.world > 1:
        for name in trained:
            for tensor in core.state(model, name).values():
                torch.distributed.broadcast(tensor, 0)


def encoded(
    task: Task, rows: Sequence[Example], tokenizer: Any, length: int | None, poll: Callable[[], None]
) -> list[Encoded]:
    out: list[Encoded] = []
    for start in range(0, len(rows), POLLED):
        poll()
        out += task.encode_all(rows[start : start + POLLED], tokenizer, length)
    return out


def feed(stuff: Material, rows: list[Encoded], pad: int, length: int | None, settings: Settings, model: nn.Module,
         say: Say) -> Feed:  # fmt: skip
    """The training rows in their order. Rows that train nothing are left out and told of; it takes one at least."""
    bare = [row.where for row in rows if row.labels is None]
    raise_all([Problem("no label to train on", w, fix="label the row or leave it out") for w in bare])
    kept = [row for row in rows if units(row)]
    if not kept:
        raise InputError(Problem("no row has a trained token", rows[0].where, stuff.task.trains,
                                 fix="look at the rows with fw data, or allow more tokens with length"))  # fmt: skip
    if len(kept) < len(rows):
        lost = [row.where for row in rows if not units(row)]
        say(f"{len(lost)} rows have no trained token and are left out: {listed(lost, 4)}")
    if cut := sum(row.truncated > 0 for row in kept):
        say(f"{cut} of {len(kept)} rows are longer than {length} tokens and are cut")
    weights = None if stuff.weights is None else row_weights([row.source for row in kept], stuff.weights)
    bins = packing(stuff.task, kept, length, model) if settings.packing else None
    return Feed(kept, settings.batch, settings.seed, pad, settings.buckets and not stuff.task.whole, bins, weights)


def packing(task: Task, rows: Sequence[Encoded], length: int | None, model: nn.Module) -> int:
    """Tokens per bin. Raises InputError for a task, or a model, that cannot be packed."""
    if task.auto != "AutoModelForCausalLM":
        raise InputError(
            Problem("packing is for causal language models", "packing", got=repr(task), fix="leave it out")
        )
    if why := packable(model):
        raise InputError(Problem("the model cannot be trained on packed rows", "packing", got=why, fix="leave it out"))
    longest = max(len(row.input_ids) for row in rows)
    return max(longest, min(length or 1024, 1024))


def dev_rows(stuff: Material, tokenizer: Any, pad: int, length: int | None, settings: Settings,
             poll: Callable[[], None]) -> Dev | None:  # fmt: skip
    """The dev split that has answers, None where there is none."""
    rows = encoded(stuff.task, stuff.dev, tokenizer, length, poll)
    pairs = [
        (r, stuff.task.reference(e)) for r, e in zip(rows, stuff.dev, strict=True) if r.labels is not None and units(r)
    ]
    pairs = [(r, answer) for r, answer in pairs if answer is not None]
    if not pairs:
        return None
    return Dev([r for r, _ in pairs], [a for _, a in pairs], stuff.task, tokenizer, pad, max(32, settings.batch))


def limits(model: nn.Module, task: Task, tokenizer: Any, settings: Settings,
           method: Method | None) -> tuple[int | None, int]:  # fmt: skip
    """(length, pad id). Raises InputError where task, tokenizer, length, model and method do not go together."""
    check_vocabulary(model, tokenizer)
    if task.auto == "AutoModelForCausalLM":
        check_causal(model)
    return check_length(model, settings.length, wanted(model, method)), pad_id(model, tokenizer)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what the device has no arithmetic for."""
    if precision == "fp16" and device.type == "cpu":
        raise InputError(Problem("there is no fp16 arithmetic on a CPU", "precision", "fp32 or bf16", "fp16"))
    if precision == "tf32" and device.type != "cuda":
        raise InputError(
            Problem("tf32 exists on CUDA devices only", "precision", "fp32 or bf16", f"tf32 on {device.type}")
        )


@contextmanager
def conditions(model: nn.Module, settings: Settings) -> Iterator[None]:
    """Threads, tf32, gradient checkpointing and fused frozen modules for the time of the run; the model is left in eval
    mode, and class for class what it was."""
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(settings.threads or threads)
    torch.set_float32_matmul_precision("high" if settings.precision == "tf32" else "highest")
    checkpointing = settings.checkpointing and not checkpointed(model)
    if checkpointing:
        recompute(model)
    fused = fuse(model)
    model.train()
    try:
        yield
    finally:
        model.eval()
        if fused:
            unfuse(model)
        if checkpointing:
            checkpointing_switch(model, "disable")()
        torch.set_float32_matmul_precision(matmul)
        torch.set_num_threads(threads)


def checkpointed(model: Any) -> bool:
    """Whether it recomputes already."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def recompute(model: nn.Module) -> None:
    """Non-reentrant checkpointing: gradients flow to adapters although no input of a block requires grad."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise InputError(Problem("the model cannot recompute activations", "checkpointing", got=type(model).__name__))
    checkpointing_switch(model, "enable")({"use_reentrant": False})


def checkpointing_switch(model: Any, what: str) -> Any:
    """transformers' own method, by its newer name where it has that."""
    newer = getattr(model, f"activation_checkpointing_{what}", None)
    return newer or getattr(model, f"gradient_checkpointing_{what}")


def base_name(model: nn.Module) -> str:
    """What the base is called where it came from."""
    return str(getattr(model, "name_or_path", "") or type(model).__name__)
