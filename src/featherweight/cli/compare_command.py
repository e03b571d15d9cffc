"""`fw compare`: what a model does without tuning beside what adapters make of it, on the same rows."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import OVER, pairs
from featherweight.cli.screen import Shown, jsonable, told
from featherweight.core.errors import Problem, raise_all
from featherweight.files.staged import write_text


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Prompting:
    """Examples in context: which, how many, and how a prompt is written."""

    shots: Annotated[str | None, Parameter(help="Examples in context, by commas (default: 0,4,16).")] = None
    select: Annotated[
        str | None,
        Parameter(help="random, balanced, nearest, by commas (default: random, and nearest with an embedder)."),
    ] = None
    embedder: Annotated[
        str | None,
        Parameter(
            help="Folder of an encoder, or words: finds the nearest examples; an "
            "encoder also bears the logistic regression."
        ),
    ] = None
    template: Annotated[str | None, Parameter(help="Prompt templates that write the rows: rte, rte/one, a folder.")] = (
        None
    )
    prompt: Annotated[str, Parameter(help="How labels are asked for without templates.")] = "{text}\\nLabel:"
    words: Annotated[str | None, Parameter(help="How labels read: 0=bad,1=good.")] = None
    cue: Annotated[str, Parameter(help="Opens every answer: Let's think step by step.")] = ""
    instruction: Annotated[str, Parameter(help="Stands in front of the prompt.")] = ""
    order: Annotated[str, Parameter(help="Where the best example stands: last, first or shuffled.")] = "last"
    separator: Annotated[str, Parameter(help="Between examples.")] = "\\n\\n"

    def settings(self) -> dict[str, Any]:
        """As `compare` takes them. Raises InputError over every flag that cannot be read."""
        problems: list[Problem] = []
        shots, words = numbers(self.shots, problems), mapping(self.words, "--words", problems)
        raise_all(problems)
        select = self.select.split(",") if self.select else None
        read = {"shots": shots, "words": words, "select": select, "prompt": plain(self.prompt)}
        return {**vars(self), **read, "separator": plain(self.separator)}


USUAL = Prompting()


def command(
    model: Annotated[str, Parameter(help="Folder of the base: a decoder or encoder-decoder is prompted, an encoder "
                                         "embeds.")],
    train: Annotated[str, Parameter(help="Rows to show in context and to fit on: what the adapters were trained on.")],
    test: Annotated[str, Parameter(help="Rows to answer.")],
    *,
    adapter: Annotated[tuple[str, ...], Parameter(help="Folder of a run, or RUN=BASE; may be given again.")] = (),
    over: Annotated[str | None, Parameter(help=OVER)] = None,
    prompting: Prompting = USUAL,
    metric: Annotated[str, Parameter(help="For texts: exact or rouge.")] = "exact",
    reasoning: Annotated[bool, Parameter(negative="", help="Answers are a rationale, ####, and the answer.")] = False,
    rows: Annotated[int | None, Parameter(help="Answer only so many rows, drawn by the seed.")] = None,
    columns: Annotated[str | None, Parameter(help="Which column is what: text=review,label=stars.")] = None,
    tokens: Annotated[
        int | None, Parameter(help="Most tokens of a text that is written (default: by the longest answer in TRAIN).")
    ] = None,
    batch: Annotated[int, Parameter(help="Rows at a time.")] = 32,
    length: Annotated[int | None, Parameter(help="Most tokens per row.")] = None,
    seed: Annotated[int, Parameter(help="Draws examples and rows.")] = 0,
    output: Annotated[Path | None, Parameter(help="File for the figures, as JSON, anew after each line.")] = None,
    published: Annotated[bool, Parameter(negative="", help="Add the papers' figures of the rivals.")] = False,
) -> Shown:  # fmt: skip
    """Do I need to fine-tune at all? Baselines and adapters on the same rows, with costs and intervals."""
    settings = prompting.settings()
    from featherweight.baselines.compare import compare

    kept: list[Any] = []
    try:
        found = compare(
            model, train, test, adapters=based(adapter), over=pairs(over, "--over"), metric=metric, rows=rows,
            reasoning=reasoning, tokens=tokens, columns=pairs(columns), batch=batch, length=length, seed=seed,
            say=told, made=keeping(kept, output), **settings,
        )  # fmt: skip
    except BaseException:
        if kept:
            told("\n".join(("", "not all of it, but what there is so far:", repr(kept[-1]))))
        raise
    keeping(kept, output, complete=True)(found)
    return shown(found, published)


def keeping(kept: list[Any], output: Path | None, complete: bool = False) -> Callable[[Any], None]:
    """Holds the latest comparison, in a file too where one is named."""

    def keep(found: Any) -> None:
        kept[:] = [found]
        if output is not None:
            write_text(output, json.dumps({"complete": complete, **jsonable(found.to_dict())}) + "\n")

    return keep


def shown(found: Any, published: bool) -> Shown:
    """The table, what is to be known of its lines, and what it says."""
    from featherweight.baselines.comparison import aligned
    from featherweight.baselines.published import TABLES

    data, screen = found.to_dict(), [*aligned(found.table()), *notes(found.lines), "", *found.advice()]
    if published:
        data["published"] = [t.to_dict() for t in TABLES]
        screen += [
            piece for t in TABLES for piece in ("", f"Published, not on these rows: {t.title}", *aligned(t.cells))
        ]
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
