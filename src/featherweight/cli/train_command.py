"""`fw train`: a run from a file, from flags, or from a file with flags over it."""

import sys
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.config import RunConfig, read_config
from featherweight.cli.nouns import placed
from featherweight.cli.screen import Shown
from featherweight.cli.seeds_screen import report as seeds_report
from featherweight.cli.train_help import train_help
from featherweight.core.errors import InputError, Problem


def command(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> Shown:
    """Fine-tune a model on your data."""
    if not words or "--help" in words or "-h" in words:
        return train_help()
    config = read_config(words)
    try:
        keep_within(config)
        run = repeated(config) if config.seeds else trained(config)
    except InputError as error:  # found while running: said where the user wrote it
        raise InputError(*(placed(p, config.origins, "") for p in error.problems)) from error
    return seeds_report(run, f"new.csv{again(config.columns)}") if config.seeds else report(config, run)


def keep_within(config: RunConfig) -> None:
    """Plan the run where a limit is set. Raises InputError where it needs more memory, naming the ways out."""
    if config.limit is None:
        return
    from featherweight.plan import plan
    from featherweight.plan.fit import ways_out
    from featherweight.plan.show import size
    from featherweight.train.repeats import placed as drawn

    data = drawn(config.data, config.seeds[0]) if config.seeds else config.data
    method = config.method if config.start is not None else method_of(config)
    found = plan(config.model, method, config.quantize, task=config.task, start=config.start, data=data,
                 columns=config.columns, template=config.template, recipe=config.recipe, over=config.over,
                 **config.settings)  # fmt: skip
    needs = {"a training step": found.train_bytes, **{k: found.peaks[k] for k in ("load", "save")}}
    worst = max(needs, key=lambda name: needs[name])
    if needs[worst] > config.limit:
        ways = "; ".join(ways_out(found, bool(config.settings.get("checkpointing"))))
        raise InputError(Problem("the run needs more memory than its limit", "limit", f"at most {size(config.limit)}",
                                 f"{size(needs[worst])} at the peak of {worst}", ways))  # fmt: skip


def method_of(config: RunConfig) -> Any:
    """The method that is attached: LoRA where nothing else is said."""
    from featherweight.methods import LoRA

    return LoRA() if config.method is None else config.method


def trained(config: RunConfig) -> Any:
    """The run itself: one call of the API."""
    from featherweight.train.run import train

    return train(config.model, config.data, config.task, output=config.output, **options(config))


def repeated(config: RunConfig) -> Any:
    """A run for each seed."""
    from featherweight.train.repeats import repeat

    count = len(config.seeds)

    def begun(seed: int, folder: Path) -> None:
        print(f"seed {seed}, {config.seeds.index(seed) + 1} of {count}: {folder}", file=sys.stderr, flush=True)

    return repeat(config.model, config.data, config.task, seeds=config.seeds, output=config.output, begun=begun,
                  **options(config))  # fmt: skip


def options(config: RunConfig) -> dict[str, Any]:
    """The keywords of the API."""
    method = config.method if config.start is not None else method_of(config)
    return {
        "method": method, "name": config.name, "columns": config.columns, "start": config.start,
        "quantize": config.quantize, "recipe": config.recipe, "template": config.template, "over": config.over,
        **config.settings,
    }  # fmt: skip


def report(config: RunConfig, run: Any) -> Shown:
    """What the run did, and what to type next."""
    share = 100 * run.trainable / run.total
    scores = {k: v for k, v in run.scores.items() if v is not None}
    data = {
        "output": str(run.output), "steps": run.steps, "scores": scores, "trainable": run.trainable,
        "total": run.total, "seconds": run.seconds, "tokens_per_second": run.tokens_per_second,
    }  # fmt: skip
    rows = [
        ("adapter", str(run.output)),
        ("trained", f"{run.trainable:,} of {run.total:,} parameters ({share:.3g} %)"),
        ("steps", f"{run.steps} in {run.seconds:.1f} s, {run.tokens_per_second:,.0f} tokens/s"),
        *((f"dev {name}", f"{value:.4f}") for name, value in scores.items()),
        ("next", f"fw predict --adapter {run.output} --data new.csv{again(config.columns)}"),
    ]
    wide = max(len(name) for name, _ in rows)
    return Shown(data, tuple(f"{name:<{wide}}  {value}" for name, value in rows))


ANSWERS = ("label", "labels", "score", "completion", "output")


def again(columns: dict[str, str] | None) -> str:
    """The mapping that new rows need too: that of the questions."""
    pairs = ",".join(f"{role}={name}" for role, name in (columns or {}).items() if role not in ANSWERS)
    return f" --columns {quote(pairs)}" if pairs else ""
