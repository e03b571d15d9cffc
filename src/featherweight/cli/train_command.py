"""`fw train`: a run from a file, from flags, or from a file with flags over it."""

from shlex import quote
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.config import RunConfig, read_config
from featherweight.cli.nouns import placed
from featherweight.cli.screen import Shown
from featherweight.cli.train_help import train_help
from featherweight.core.errors import InputError


def command(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> Shown:
    """Fine-tune a model on your data."""
    if not words or "--help" in words or "-h" in words:
        return train_help()
    config = read_config(words)
    try:
        run = trained(config)
    except InputError as error:  # found while running: said where the user wrote it
        raise InputError(*(placed(p, config.origins, "") for p in error.problems)) from error
    return report(config, run)


def trained(config: RunConfig) -> Any:
    """The run itself: one call of the API."""
    from featherweight.train.run import train

    method = config.method
    if method is None and config.start is None:
        from featherweight.methods import LoRA

        method = LoRA()
    return train(
        config.model, config.data, config.task, output=config.output, method=method, name=config.name,
        columns=config.columns, start=config.start, quantize=config.quantize, **config.settings,
    )  # fmt: skip


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
