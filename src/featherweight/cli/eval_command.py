"""`fw eval`: loss and metrics of a model or an adapter on labelled rows."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from featherweight.cli.base import OVER, QUANTIZE, TASK, opened, pairs
from featherweight.cli.prompting import TEMPLATE, template_of
from featherweight.cli.screen import Shown, told
from featherweight.core.errors import InputError, Problem


def command(
    *,
    data: Annotated[str | None, Parameter(help="File or folder with labelled rows.")] = None,
    adapter: Annotated[Path | None, Parameter(help="Folder of the adapter.")] = None,
    model: Annotated[str | None, Parameter(help="Folder of a model: alone, or as the adapter's base.")] = None,
    task: Annotated[str | None, Parameter(help=TASK)] = None,
    split: Annotated[str | None, Parameter(help="train, valid or test (default: the last there is).")] = None,
    metrics: Annotated[str, Parameter(help="For texts: loss, e2e, rouge, bleu, exact, task, by commas.")] = "loss",
    columns: Annotated[str | None, Parameter(help="Which column is what: text=review,label=stars.")] = None,
    template: Annotated[str | None, Parameter(help=TEMPLATE)] = None,
    batch: Annotated[int, Parameter(help="Rows at a time.")] = 32,
    length: Annotated[int | None, Parameter(help="Most tokens per row.")] = None,
    quantize: Annotated[str | None, Parameter(help=QUANTIZE)] = None,
    over: Annotated[str | None, Parameter(help=OVER)] = None,
    device: Annotated[str, Parameter(help="auto, cuda, mps or cpu.")] = "auto",
) -> Shown:
    """Score a model or an adapter on labelled data."""
    if data is None:
        raise InputError(Problem("data is needed", "--data", fix="--data FILE with labelled rows"))
    from featherweight.evaluate import evaluate
    from featherweight.evaluate.averaged import averaged
    from featherweight.evaluate.progress import teller

    worded = template_of(template, adapter)
    loaded, wanted = opened(adapter, model, task, device, quantize, over)
    if worded is not None:
        scores = averaged(loaded, data, worded, wanted, batch=batch, length=length, split=split,
                          columns=pairs(columns), told=teller(told, "eval"))  # fmt: skip
        return Shown({"template": worded, **scores.to_dict()}, (repr(scores), f"prompt templates: {worded}"))
    scores = evaluate(
        loaded, data, wanted, batch=batch, length=length, split=split,
        metrics=tuple(metrics.split(",")), columns=pairs(columns), told=teller(told, "eval"),
    )  # fmt: skip
    return Shown(scores.to_dict(), (repr(scores),))
