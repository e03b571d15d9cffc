"""`fw compare`: what a model does without tuning beside what adapters make of it, on the same rows."""

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import pairs
from featherweight.cli.screen import Shown
from featherweight.core.errors import Problem, raise_all


def command(
    model: Annotated[str, Parameter(help="Folder of the base: a decoder or encoder-decoder is prompted, an encoder "
                                         "embeds.")],
    train: Annotated[str, Parameter(help="Rows to show in context and to fit on: what the adapters were trained on.")],
    test: Annotated[str, Parameter(help="Rows to answer.")],
    *,
    adapter: Annotated[tuple[str, ...], Parameter(help="Folder of a run, or RUN=BASE; may be given again.")] = (),
    shots: Annotated[str | None, Parameter(help="Examples in context, by commas (default: 0,4,16).")] = None,
    select: Annotated[str | None, Parameter(help="random, balanced, nearest, by commas (default: random, and nearest "
                                                 "with an embedder).")] = None,
    embedder: Annotated[str | None, Parameter(help="Folder of an encoder, or words: finds the nearest examples; an "
                                                   "encoder also bears the logistic regression.")] = None,
    templates: Annotated[str | None, Parameter(help="Prompt templates: a set's name, or set/template.")] = None,
    prompt: Annotated[str, Parameter(help="How labels are asked for without templates.")] = "{text}\\nLabel:",
    words: Annotated[str | None, Parameter(help="How labels read: 0=bad,1=good.")] = None,
    metric: Annotated[str, Parameter(help="For texts: exact or rouge.")] = "exact",
    reasoning: Annotated[bool, Parameter(negative="", help="Answers are a rationale, ####, and the answer.")] = False,
    cue: Annotated[str, Parameter(help="Opens every answer: Let's think step by step.")] = "",
    instruction: Annotated[str, Parameter(help="Stands in front of the prompt.")] = "",
    order: Annotated[str, Parameter(help="Where the best example stands: last, first or shuffled.")] = "last",
    separator: Annotated[str, Parameter(help="Between examples.")] = "\\n\\n",
    rows: Annotated[int | None, Parameter(help="Answer only so many rows, drawn by the seed.")] = None,
    columns: Annotated[str | None, Parameter(help="Which column is what: text=review,label=stars.")] = None,
    batch: Annotated[int, Parameter(help="Rows at a time.")] = 32,
    length: Annotated[int | None, Parameter(help="Most tokens per row.")] = None,
    seed: Annotated[int, Parameter(help="Draws examples and rows.")] = 0,
    published: Annotated[bool, Parameter(negative="", help="Add the papers' figures of the rivals.")] = False,
) -> Shown:  # fmt: skip
    """Do I need to fine-tune at all? Baselines and adapters on the same rows, with costs and intervals."""
    problems: list[Problem] = []
    counts = numbers(shots, problems)
    spoken = mapping(words, "--words", problems)
    raise_all(problems)
    from featherweight.baselines.compare import compare

    found = compare(
        model, train, test, adapters=based(adapter), shots=counts, select=select.split(",") if select else None,
        embedder=embedder, templates=templates, prompt=plain(prompt), words=spoken, metric=metric, reasoning=reasoning,
        rows=rows, columns=pairs(columns), batch=batch, length=length, seed=seed, cue=cue, instruction=instruction,
        order=order, separator=plain(separator),
    )  # fmt: skip
    data, screen = found.to_dict(), [table(found.table()), *notes(found.lines), "", *found.advice()]
    if published:
        from featherweight.baselines.published import TABLES

        data["published"] = [t.to_dict() for t in TABLES]
        screen += [piece for t in TABLES for piece in ("", f"Published, not on these rows: {t.title}", table(t.cells))]
    return Shown(data, tuple(screen))


def plain(text: str) -> str:
    """Line breaks as a shell can write them."""
    return text.replace("\\n", "\n")


def numbers(shots: str | None, problems: list[Problem]) -> list[int] | None:
    if shots is None:
        return None
    parts = [part.strip() for part in shots.split(",")]
    problems += [Problem("not a number of shots", "--shots", "numbers by commas: 0,4,16", repr(p)) for p in parts
                 if not p.isdecimal()]  # fmt: skip
    return [int(p) for p in parts if p.isdecimal()]


def mapping(words: str | None, flag: str, problems: list[Problem]) -> dict[str, str]:
    """0=bad,1=good as a mapping."""
    parts = [part.partition("=") for part in (words or "").split(",") if part]
    problems += [Problem("not a mapping", flag, "label=word", repr(key)) for key, sign, _ in parts if not sign]
    return {key.strip(): word.strip() for key, _, word in parts}


def based(adapters: Sequence[str]) -> dict[str, str | None]:
    """RUN or RUN=BASE as folder → base."""
    parts = [each.partition("=") for each in adapters]
    return {run: where or None for run, _, where in parts}


def notes(lines: Sequence[Any]) -> list[str]:
    return [f"{line.name}: {note}" for line in lines for note in line.notes]


def table(cells: Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table

    head, *rows = cells
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        made.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
