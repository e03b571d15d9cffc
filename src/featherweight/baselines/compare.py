"""`compare`: what a model does without tuning beside what adapters make of it, on the same rows (T-Few's Table 1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from featherweight.baselines import contenders
from featherweight.baselines.comparison import Comparison, Line
from featherweight.baselines.forms import LABELLED, TEXTS, Forms
from featherweight.baselines.near import WORDS, encoder_of
from featherweight.baselines.shots import SELECT
from featherweight.baselines.verbal import PROMPT
from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all
from featherweight.evaluate.progress import Progress, Say, quiet
from featherweight.evaluate.setting import tokenizer_of
from featherweight.evaluate.source import labelled

if TYPE_CHECKING:
    from featherweight.data.types import Example
    from featherweight.tasks.task import Task

WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
SHOTS = (0, 4, 16)
Maker = Callable[..., Line]


def ignored(found: Comparison) -> None:
    """Keeps nothing."""


def compare(
    model: Any, train: Any, test: Any, *, adapters: Sequence[Any] | Mapping[Any, Any] = (),
    shots: Sequence[int] | None = None, select: Sequence[str] | None = None, embedder: Any = None,
    template: str | None = None, prompt: str = PROMPT, words: Mapping[str, str] | None = None, metric: str = "exact",
    reasoning: bool = False, rows: int | None = None, columns: Any = None, batch: int = 32, length: int | None = None,
    seed: int = 0, tokens: int | None = None, over: Mapping[str, Any] | None = None, say: Say = quiet,
    made: Callable[[Comparison], None] = ignored, **layout: Any,
) -> Comparison:  # fmt: skip
    """Score on the rows of `test`: the most frequent answer, `model` with `shots` examples of `train` in context (a
    decoder or an encoder-decoder), a logistic regression on frozen embeddings (labelled rows), and `adapters`.

    adapters: folders of runs, or {folder: its base}; over: folders, by name, of what they work over, where these do not
    lie beside them. select: "random", "balanced", "nearest" (default: random, and nearest where an `embedder` is
    given); embedder: an encoder's folder or "words" (an encoder as `model` is its own). template: a set of prompt
    templates that writes both sets, set/one, or a folder (`prompted`); prompt, words: how labels are asked for without
    (`as_choices`). metric: "exact" or "rouge" for texts; reasoning: texts answer with a rationale. rows: that many of
    `test`, drawn by `seed`. tokens: the most of a text that is written (default: a quarter more than the longest answer
    of `train` has). layout: order, separator, instruction and cue of `in_context`. `say` is told how it goes, `made`
    what there is so far after each line. Raises InputError over everything that does not fit.
    """
    pool, asked, shape = read(train, test, template, columns)
    asked = drawn(asked, rows, seed)
    forms = Forms(pool, asked, shape, prompt, words or {}, metric)
    task = speaking(model, forms, reasoning)
    ways = chosen(select, embedder)
    check(task, shots, ways, embedder)
    encoder = encoder_of(model if embedder is None and task is None else embedder)
    pairs = known(adapters, test, over or {})
    work: list[tuple[str, Maker]] = []
    if task is not None:
        speaker, task = spoken(model, task, forms, tokens, say)
        prompts = partial(contenders.prompted, speaker, task, forms, embedder=encoder, batch=batch, length=length,
                          seed=seed, layout=layout)  # fmt: skip
        for k, way in in_contexts(SHOTS if shots is None else tuple(shots), ways):
            work.append((contenders.name_of(k, way), partial(prompts, shots=k, select=way)))
    if encoder is not None and encoder != WORDS and forms.shape in LABELLED:
        work.append(("frozen + regression", partial(contenders.regression, encoder, forms, batch, length, seed)))
    tuned = partial(contenders.adapter, forms=forms, test=test, batch=batch, length=length, tokens=tokens)
    work += [(f"tuned: {Path(f).name}", partial(tuned, f, base=where, over=parts)) for f, where, parts in pairs]
    return run(contenders.commonest(forms), work, forms, say, made)


def run(lines: list[Line], work: Sequence[tuple[str, Maker]], forms: Forms, say: Say,
        made: Callable[[Comparison], None]) -> Comparison:  # fmt: skip
    """The lines that there are and those that are made, one after the other."""
    if not lines and not work:
        raise InputError(Problem("nothing to compare", "model", "a model that writes, an embedder, or adapters"))
    say(f"{len(work)} contenders over {len(forms.test):,} rows: {', '.join(name for name, _ in work)}")
    progress = Progress(say, len(work))
    for name, make in work:
        lines = [*lines, make(told=progress.begin(name))]
        say(f"{lines[-1].name}: {forms.measure} {lines[-1].score:.1%}")
        made(Comparison(tuple(lines), forms.measure))
    return Comparison(tuple(lines), forms.measure)


def known(
    adapters: Sequence[Any] | Mapping[Any, Any], test: Any, over: Mapping[str, Any]
) -> list[tuple[Any, Any, dict[str, Any]]]:
    """(folder, its base or None, what it works over) of each. Raises InputError for one that was trained on `test`, and
    for a name in `over` that none of them works over."""
    pairs = list(adapters.items() if isinstance(adapters, Mapping) else [(folder, None) for folder in adapters])
    for folder, _ in pairs:
        contenders.unseen(contenders.record(Path(folder)), test, folder)
    if not over:
        return [(folder, where, {}) for folder, where in pairs]
    from featherweight.checkpoint.load import read as stored
    from featherweight.interop.load import needs

    found = [(folder, where, {n: over[n] for n in needs(stored(folder)) if n in over}) for folder, where in pairs]
    used = {name for *_, mine in found for name in mine}
    raise_all(Problem("no adapter works over it", f"over.{name}") for name in over if name not in used)
    return found


def spoken(model: Any, task: Task, forms: Forms, tokens: int | None, say: Say) -> tuple[Any, Task]:
    """The model, and the task with its texts bounded."""
    live = base(model, task)
    task = contenders.bounded(task, forms.answers, tokenizer_of(live), tokens)
    if task.generates:
        say(f"at most {task.max_new_tokens} tokens are written for a row")  # type: ignore[attr-defined]
    return live, task


def in_contexts(shots: Sequence[int], ways: Sequence[str]) -> list[tuple[int, str]]:
    """Zero-shot once, and each other number of examples chosen in each way."""
    return [(k, way) for k in dict.fromkeys(shots) for way in (ways if k else ways[:1])]


def read(train: Any, test: Any, template: str | None, columns: Any) -> tuple[list[Example], list[Example], str]:
    """Both sets of rows and their shape. Raises InputError where the two differ in it."""
    sources = [train, test]
    if template is not None:
        from featherweight.data.templates import prompted

        sources = [prompted(source, template, columns=columns) for source in sources]
    (_, pool, first), (_, asked, second) = (
        labelled(source, split, None if template else columns)
        for source, split in zip(sources, ("train", None), strict=True)
    )
    if first is not None and second is not None and first.name != second.name:
        raise InputError(Problem("the two sets have unlike shapes", "data", first.name, second.name,
                                 "map the columns of both alike"))  # fmt: skip
    return pool, asked, first.name if first is not None else shape_of(pool)


def shape_of(examples: Sequence[Example]) -> str:
    """The shape of examples in memory."""
    first = examples[0]
    if first.choices or first.messages or first.turns:
        return "choices" if first.choices else "messages" if first.messages else "completion"
    return "classification" if first.pair is None else "pair"


def drawn(examples: list[Example], rows: int | None, seed: int) -> list[Example]:
    """That many rows in their order, or all."""
    if rows is None or rows >= len(examples):
        return examples
    if rows < 1:
        raise InputError(Problem("no rows to compare on", "rows", "at least 1", str(rows)))
    return [examples[i] for i in sorted(Random(f"{seed} rows").sample(range(len(examples)), rows))]


def speaking(model: Any, forms: Forms, reasoning: bool) -> Task | None:
    """The task by which a model answers prompts; None for one that writes nothing (an encoder)."""
    from featherweight import tasks

    config = config_of(model)
    names = [type(model).__name__] if not isinstance(model, str | os.PathLike) else list(config.architectures or ())
    if not any(name.endswith(WRITERS) for name in names):
        return None
    pair = bool(getattr(config, "is_encoder_decoder", False))
    if forms.shape not in TEXTS:
        return tasks.Seq2SeqChoices() if pair else tasks.Choices()
    if reasoning:
        return tasks.Seq2SeqChainOfThought() if pair else tasks.ChainOfThought()
    return tasks.Seq2Seq() if pair else tasks.CausalLM()


def config_of(model: Any) -> Any:
    if not isinstance(model, str | os.PathLike):
        return model.config
    from transformers import AutoConfig

    from featherweight.interop.transformers import check_folder, refusing

    check_folder(model, "config.json")
    with refusing(model):
        return AutoConfig.from_pretrained(os.fspath(model), trust_remote_code=False)


def base(model: Any, task: Task) -> Any:
    from featherweight.interop import load_base

    return load_base(model, task) if isinstance(model, str | os.PathLike) else model


def chosen(select: Sequence[str] | None, embedder: Any) -> tuple[str, ...]:
    if select is None:
        return ("random",) if embedder is None else ("random", "nearest")
    return tuple(dict.fromkeys(select))


def check(task: Task | None, shots: Sequence[int] | None, select: Sequence[str], embedder: Any) -> None:
    """Raise InputError over settings that do not go together."""
    found = [Problem("unknown way to choose shots", "select", got=repr(s), fix=did_you_mean(s, SELECT))
             for s in select if s not in SELECT]  # fmt: skip
    found += [Problem("no such number of shots", "shots", "0 or more", str(k)) for k in shots or () if k < 0]
    if "nearest" in select and embedder is None:
        found.append(Problem("nothing to find the nearest examples by", "embedder", fix='"words", or an encoder'))
    if task is None and shots is not None:
        fix = "leave shots out, or name a decoder or an encoder-decoder"
        found.append(Problem("the model writes nothing, so it learns nothing in context", "shots", fix=fix))
    raise_all(found)
