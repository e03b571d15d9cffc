"""`fw predict`: the rows of a file, each with its label and probability, score or text."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.answers import COLUMNS, answered, write
from featherweight.cli.base import OVER, QUANTIZE, TASK, opened, pairs
from featherweight.cli.prompting import TEMPLATE, template_of
from featherweight.cli.screen import Shown, told
from featherweight.core.errors import InputError, Problem, listed

FILES = (".csv", ".tsv", ".jsonl", ".npy")
MOST = 3  # numbers of a vector on the screen


def command(
    *words: Annotated[str, Parameter(help="Texts to answer, instead of a file.")],
    data: Annotated[str | None, Parameter(help="File of rows; labels in it are not read.")] = None,
    output: Annotated[
        Path | None, Parameter(help="Where to write: .csv, .tsv, .jsonl, or embeddings as .npy (default: the screen).")
    ] = None,
    adapter: Annotated[Path | None, Parameter(help="Folder of the adapter.")] = None,
    model: Annotated[str | None, Parameter(help="Folder of a model: alone, or as the adapter's base.")] = None,
    task: Annotated[str | None, Parameter(help=TASK)] = None,
    columns: Annotated[str | None, Parameter(help="Which column is what: text=review.")] = None,
    template: Annotated[str | None, Parameter(help=TEMPLATE)] = None,
    batch: Annotated[int, Parameter(help="Rows at a time.")] = 32,
    length: Annotated[int | None, Parameter(help="Most tokens per row.")] = None,
    quantize: Annotated[str | None, Parameter(help=QUANTIZE)] = None,
    over: Annotated[str | None, Parameter(help=OVER)] = None,
    device: Annotated[str, Parameter(help="auto, cuda, mps or cpu.")] = "auto",
) -> Shown:
    """Label the rows of a file, or answer them."""
    if not words and data is None:
        raise InputError(Problem("data is needed", "--data", fix='--data FILE, or the texts themselves: "like this"'))
    if output is not None and output.suffix not in FILES:
        raise InputError(Problem("unknown kind of file", "--output", listed(FILES), repr(str(output))))
    from featherweight.data.read import read

    worded = template_of(template, adapter)
    if worded is not None and data is None:
        raise InputError(Problem("templates word the rows of a file", "--data", fix="--data FILE, or --template none"))
    mapping = pairs(columns)
    found = read([{"text": word} for word in words] if data is None else data, None if worded else mapping)
    rows = [row.fields for row in found]
    loaded, wanted = opened(adapter, model, task, device, quantize, over)
    source: Any = list(words) if data is None else data
    answers = made(worded, mapping)(loaded, source, task=wanted, batch=batch, length=length)
    full = [answered(row, answer) for row, answer in zip(rows, answers, strict=True)]
    if output is not None:
        write(output, full)
        return Shown({"output": str(output), "rows": len(full)}, (f"{len(full)} rows: {output}",))
    return Shown({"rows": full}, screen(rows, known_by(found, mapping, worded), answers))


def made(template: str | None, mapping: Mapping[str, str] | None) -> Callable[..., list[dict[str, Any]]]:
    """What answers the rows: as they stand, or as templates word them."""
    from featherweight.evaluate import predict
    from featherweight.evaluate.averaged import answers
    from featherweight.evaluate.progress import teller

    found = predict if template is None else partial(answers, name=template)
    return partial(found, columns=mapping, told=teller(told, "predict"))


def known_by(rows: Any, mapping: Mapping[str, str] | None, template: str | None) -> list[str]:
    """The columns that a person knows a row by: those that the templates print, or those of its texts."""
    from featherweight.data.names import plain_name
    from featherweight.data.shape import shape_of
    from featherweight.data.templates import prompts

    if template is not None:
        printed = set().union(*(wording.needs for wording in prompts(template).templates.values()))
        printed |= {theirs for ours, theirs in (mapping or {}).items() if ours in printed}
        return [key for key in rows[0].fields if key in printed or plain_name(key) in printed]
    columns = shape_of(rows, mapping).columns
    roles = ("text", "text_pair", "prompt", "instruction", "messages", "question", "tokens", "subject", "anchor")
    return [columns[role] for role in roles if role in columns]


def screen(rows: list[dict[str, Any]], columns: list[str], answers: list[dict[str, Any]]) -> tuple[Any, ...]:
    """The answers beside the texts of their rows."""
    from rich import box
    from rich.table import Table

    names = [name for name in (*COLUMNS, "embedding") if name in answers[0]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", overflow="fold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row, answer in zip(rows, answers, strict=True):
        texts = " | ".join(spoken(row.get(column, "")) for column in columns)
        table.add_row(texts, *(cell(answer[name]) for name in names))
    return (table,)


def spoken(value: Any) -> str:
    """A text, or words with white space between."""
    words = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    return " ".join(value) if words else str(value)


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list) and len(value) > MOST and isinstance(value[0], float):
        return f"{', '.join(map(cell, value[:MOST]))} … ({len(value)} numbers)"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
