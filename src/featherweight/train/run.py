"""`fw.train`: the verb."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import featherweight.interop
import featherweight.kernels  # noqa: F401  # registered before the first step, or that one alone would run without them
from featherweight.checkpoint.fingerprint import fingerprint
from featherweight.checkpoint.save import portable, save
from featherweight.core.count import Trainable, trainable
from featherweight.core.errors import InputError, Problem
from featherweight.core.method import Method
from featherweight.core.state import state
from featherweight.evaluate.setting import tokenizer_of
from featherweight.files.staged import write_text
from featherweight.interop.load import beneath
from featherweight.quant.recipe import recipes
from featherweight.tasks import Task
from featherweight.train import setup, toml
from featherweight.train.card import card, public
from featherweight.train.document import Form, document, origin, resolved, spelt
from featherweight.train.feed import Feed
from featherweight.train.log import Board, Journal, Voice, once, voice
from featherweight.train.loop import Loop
from featherweight.train.output import CHECKPOINTS, METRICS, RUN, claim, hash_rows, resumable
from featherweight.train.plot import curve
from featherweight.train.ranks import Ranks, ranks
from featherweight.train.recipes import RunRecipe, recipe_of, under
from featherweight.train.seeds import own_generators
from featherweight.train.settings import FREE, Settings, settings
from featherweight.train.step import Stepper, Trained
from featherweight.train.stop import Stop


@dataclass(frozen=True)
class Run:
    """What a run did. `scores` are the dev scores of the weights that were kept; `history` the lines of metrics.jsonl;
    `seconds` and `tokens_per_second` (real tokens, not padding) of this process."""

    output: Path | None
    steps: int
    scores: dict[str, float | None]
    history: list[dict[str, Any]] = field(repr=False)
    seconds: float
    tokens_per_second: float
    trainable: int
    total: int


def train(model: Any, data: Any, task: Task | None = None, *, output: str | os.PathLike[str] | None = None,
          method: Method | None = None, name: str = "default", tokenizer: Any = None, columns: Any = None,
          start: str | os.PathLike[str] | None = None, quantize: Any = None, recipe: RunRecipe | str | None = None,
          template: str | None = None, over: Mapping[str, Any] | None = None, **values: Any) -> Run:  # fmt: skip
    """Train the active, marked adapters of `model` on `data`; the base stays as it is.

    model: a live model, or a path or hub name to load for the task (then `method` says what to attach).
    data: what `featherweight.data.load` takes (a file, a folder, a hub name, rows), or its result.
    task: what a batch means; by default the model's own, else what the data's shape asks for.
    output: folder of the adapter, the model card, run.toml, metrics and checkpoints; None writes nothing.
    method, name: what to attach before training, and under which name; None trains what is active and marked.
    start: folder of an adapter to go on training, on `model` or (None) on the base that it names.
    quantize: number format of a base loaded here: a scheme, its name, its form in a file; "none" undoes the `start`'s.
    recipe: "tfew": settings, method and task by one word, for all that is not given here.
    template: prompt templates that write the rows: "rte" (all of the set), "rte/guarantee", a folder of one's own.
    over: adapters (name -> folder) that the method works over, a Fusion's. values: every field of `Settings`.

    A dev split is evaluated; the model is left in eval mode with the best evaluated weights, else the last. Raises
    InputError for wrong input, Stopped after a signal (the step is saved), NoGradient, NotFinite and CheckpointError.
    """
    followed = recipe_of(recipe)
    chosen = settings(under(followed, values))
    place = ranks(chosen.device)
    setup.check_precision(chosen.precision, place.device)
    folder = None if output is None else Path(output)
    if chosen.resume and folder is None:
        raise InputError(Problem("there is nothing to resume without an output folder", "resume", fix="give output"))
    given = origin(model, data, folder, name, columns, start, followed, template, over) | {"quantize": spelt(quantize)}
    with ExitStack() as stack:
        if folder is not None and place.main:
            stack.enter_context(claim(folder, chosen.resume))
        place.wait()
        say = voice(place.main)
        stack.callback(say.close)
        stop = stack.enter_context(Stop())
        stack.enter_context(own_generators(place.device))
        model = setup.begun(model, start, method, name, quantize)
        task, method = setup.advised(followed, model, task, method, chosen, once(say.say))
        data = setup.worded(data, template, columns, chosen.seed)
        return go(model, data, task, folder, method, name, tokenizer, columns, given, chosen, place, say, stop)


def go(model: Any, data: Any, task: Task | None, folder: Path | None, method: Method | None, name: str, tokenizer: Any,
       columns: Any, given: Form, chosen: Settings, place: Ranks, say: Voice, stop: Stop) -> Run:  # fmt: skip
    """Set up, train, and leave everything in its place."""
    stuff = setup.material(data, task, model, columns, once(say.say))
    live = setup.base(model, stuff.task, chosen, given["quantize"]).to(place.device)
    beneath(live, given["over"] or {})
    words = tokenizer_of(live, tokenizer)
    length, pad = setup.limits(live, stuff.task, words, chosen, method)
    rows = setup.encoded(stuff.task, stuff.train, words, length, stop.check)
    feed = setup.feed(stuff, rows, pad, length, chosen, live, say.say)
    dev = setup.dev_rows(stuff, words, pad, length, chosen, stop.check)
    trained = setup.adapted(live, method, name, chosen.seed)
    live.task = stuff.task.served
    live.tokenizer = words
    setup.same_start(live, trained, place)
    stuff.task.begin(live, feed, chosen, say.say)
    total = chosen.steps or feed.steps(chosen.epochs or 3)
    with setup.conditions(live, chosen):
        stepper = Stepper(live, stuff.task, feed, trained, chosen, place, total, folder, say.say)
        filled = resolved(chosen, trained, length)
        identity = identify(live, stuff, feed, dev, trained, filled, total)
        loop = open_loop(live, stepper, dev, chosen, total, folder, identity, say, stop)
        form = document(live, given, filled, identity)
        if folder is not None and place.main:
            write_text(folder / RUN, toml.dumps(form))
        loop.run()
        kept = loop.choose()
    say.say(kept)
    run = summary(loop, folder)
    if folder is not None and place.main:
        finish(loop, run, trained, words, form, kept, stuff.name)
    place.wait()
    return run


def kept_as(model: nn.Module) -> str:
    """The number format of a quantized base, for its card."""
    schemes = ", ".join(dict.fromkeys(repr(recipe.scheme) for recipe in recipes(model)))
    return f", its linear layers kept as `{schemes}`" if schemes else ""


def identify(model: nn.Module, stuff: setup.Material, feed: Feed, dev: Any, trained: Trained, filled: Form,
             total: int) -> dict[str, Any]:  # fmt: skip
    """What must be equal for a run to be resumed; a default and the same value spelt out are equal."""
    return {
        "settings": {k: v for k, v in filled.items() if k not in FREE},
        "steps": total,
        "task": stuff.task.to_dict(),
        "method": {name: portable(method, model).to_dict() for name, (method, _) in trained.items()},
        **worked_over(model, trained),
        "quantize": [recipe.to_dict() for recipe in recipes(model)],
        "rows": len(feed.rows),
        "data": hash_rows(feed.rows),
        "dev": hash_rows(dev.rows) if dev is not None else None,
        "base": base_digest(model, trained),
    }


def worked_over(model: nn.Module, trained: Trained) -> dict[str, Any]:
    """Says which adapters the trained ones work over; nothing where they need none."""
    names = dict.fromkeys(name for method, _ in trained.values() for name in method.needs)
    return {"over": {name: digest(state(model, name)) for name in names}} if names else {}


def digest(tensors: Mapping[str, Tensor]) -> str:
    found = sha256()
    for key, tensor in sorted(tensors.items()):
        found.update(key.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def base_digest(model: nn.Module, trained: Trained) -> str:
    """Says which frozen weights are under the adapters; what a trained head replaces does not count."""
    found = fingerprint(model, [key for name in trained for key in state(model, name)])
    return f"{found.base} {sha256((found.names + found.exact).encode()).hexdigest()[:16]}"


def open_loop(model: nn.Module, stepper: Stepper, dev: Any, chosen: Settings, total: int, folder: Path | None,
              identity: dict[str, Any], say: Voice, stop: Stop) -> Loop:  # fmt: skip
    """The loop at its start, or where the newest good checkpoint of the folder left it."""
    found = resumable(folder, identity) if folder is not None and chosen.resume else None
    for problem in found.skipped if found else ():
        say.say(f"damaged checkpoint passed over: {problem}")
    if chosen.resume:
        say.say(f"going on after step {found.step}" if found else "no checkpoint yet: starting over")
    main = stepper.ranks.main
    path = folder / METRICS if folder is not None and main else None
    journal = Journal(path, found.files["progress"]["lines"] if found else 0)
    board = Board(folder / "tensorboard") if folder is not None and main and chosen.tensorboard else None
    checkpoints = folder / CHECKPOINTS if folder is not None else None
    loop = Loop(model, stepper, dev, chosen, total, journal, say, stop, checkpoints, board, identity)
    if found:
        loop.restore(found)
    return loop


def summary(loop: Loop, folder: Path | None) -> Run:
    """The numbers of a run that is over."""
    p, counts = loop.progress, trainable(loop.model)
    at = p.best_step if loop.settings.best and p.best_step is not None else p.step
    scores: dict[str, float | None] = next(
        (r["dev"] for r in reversed(loop.journal.history) if "dev" in r and r["step"] == at), {}
    )
    return Run(folder, p.step, scores, loop.journal.history, perf_counter() - loop.started, loop.speed(),
               counts.trainable, counts.total)  # fmt: skip


def finish(loop: Loop, run: Run, trained: Trained, tokenizer: Any, form: dict[str, Any], kept: str, data: str) -> None:
    """The final adapter, tokenizer, card and curve."""
    assert run.output is not None
    folder = run.output
    for position, name in enumerate(n for n, (method, _) in trained.items() if method.lasting):
        save(loop.model, folder if position == 0 else folder / name, name, durable=True)
    for name in dict.fromkeys(n for method, _ in trained.values() for n in method.needs if n not in trained):
        save(loop.model, folder / name, name, durable=True)
    tokenizer.save_pretrained(folder)
    p, best = loop.progress, None
    if loop.dev is not None and p.best_step is not None:
        best = (loop.dev.task.best[0], p.best_step)
    curve(run.history, folder, best)
    first = next(iter(trained.values()))[0]
    facts = {
        "base": public(setup.base_name(loop.model)), "kept": kept_as(loop.model),
        "title": folder.resolve().name, "data": public(data),
        "method": type(first).__name__.lower(), "noun": repr(first), "task": repr(loop.stepper.task),
        "steps": run.steps, "chosen": kept,
        "share": f"{Trainable(run.trainable, run.total).share:.2f} %", "trainable": run.trainable, "total": run.total,
        "rows": len(loop.stepper.feed.rows), "dev": len(loop.dev.rows) if loop.dev else 0,
        "digest": loop.identity["data"][:16],
    }  # fmt: skip
    shown = {k: v for k, v in form.items() if k in Settings.model_fields or k in ("recipe", "template")}
    write_text(folder / "README.md", card(facts, shown, run.scores))
    if loop.board is not None:
        loop.board.close()
