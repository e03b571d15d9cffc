"""`fw data`: what a file will train on, before it does."""

from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import named, pairs
from featherweight.cli.prompting import template_of
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem


def command(
    data: Annotated[str | None, Parameter(help="A file, a folder with train/valid/test, or a hub data set.")] = None,
    /,
    *,
    model: Annotated[
        str | None, Parameter(help="Folder of the model whose tokenizer cuts the rows into tokens.")
    ] = None,
    task: Annotated[str | None, Parameter(help="The task (default: by the data's shape).")] = None,
    columns: Annotated[str | None, Parameter(help="Which column is what: text=review,label=stars.")] = None,
    template: Annotated[
        str | None, Parameter(help="Prompt templates that write the rows, in turn (`fw templates`).")
    ] = None,
    length: Annotated[int | None, Parameter(help="Most tokens per row (default: what --model takes).")] = None,
    samples: Annotated[int, Parameter(help="Rows to show.")] = 3,
) -> Shown:
    """Show what a data file will train on: rows with the trained tokens marked, lengths, cuts, doubles, leaks."""
    if data is None:
        raise InputError(Problem("data is needed", "DATA", fix="fw data FILE"))
    from functools import partial

    from featherweight.data.inspect import inspect
    from featherweight.data.load import load
    from featherweight.data.show import show
    from featherweight.data.templates import prompted
    from featherweight.tasks.pick import task_for

    wanted = named(task)
    worded = template_of(template, None)
    loaded = load(data, pairs(columns)) if worded is None else prompted(data, worded, columns=columns)
    tokenizer: Any = None
    if model is not None:
        from featherweight.interop.transformers import load_tokenizer
        from featherweight.tasks.check import stored_limit
        from featherweight.train.setup import config

        tokenizer, wanted = load_tokenizer(model), wanted or task_for(loaded.shape, config(model))
        length = length or stored_limit(model)
    report = inspect(loaded, tokenizer, wanted, length, samples=samples)
    hint = () if model else ("\nWith --model DIR: token lengths, cuts, and the rows as the model will see them.",)
    return Shown(report.to_dict(), (partial(show, report), *hint))
