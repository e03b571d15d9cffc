"""`fw pairs`: pairs to train embeddings on, of labelled rows, labelled pairs or plain passages; hard negatives."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import opened, pairs
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.files.staged import write_text

if TYPE_CHECKING:
    from featherweight.data.types import Example

SHOWN = 3


def command(
    data: Annotated[str | None, Parameter(help="A file, or a folder with train/valid/test.")] = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(help="A .jsonl file to write; for several splits a folder.")] = None,
    columns: Annotated[str | None, Parameter(help="Which column is what: text=review,label=stars.")] = None,
    positive: Annotated[str | None, Parameter(help="For pairs with a label: the labels that join, by commas.")] = None,
    sentences: Annotated[int | None, Parameter(help="For plain text: sentences of a passage (default: all).")] = None,
    negatives: Annotated[int, Parameter(help="Hard negatives of each pair: mined by the model where one is named, "
                                             "else drawn from other labels.")] = 0,
    model: Annotated[str | None, Parameter(help="Folder of the encoder that mines negatives.")] = None,
    adapter: Annotated[Path | None, Parameter(help="Folder of an adapter on it.")] = None,
    below: Annotated[float, Parameter(help="Mined negatives are less near than this times the positive.")] = 0.95,
    batch: Annotated[int, Parameter(help="Texts at a time.")] = 32,
    length: Annotated[int | None, Parameter(help="Most tokens per text.")] = None,
    seed: Annotated[int, Parameter(help="Of what is drawn.")] = 0,
    device: Annotated[str, Parameter(help="auto, cuda, mps or cpu.")] = "auto",
) -> Shown:  # fmt: skip
    """Make pairs to train embeddings on: of one label, of one passage, or said to belong together."""
    needed = {"DATA": data, "--output": output}
    fix = "fw pairs DATA --output pairs.jsonl"
    raise_all(Problem("is needed", flag, fix=fix) for flag, value in needed.items() if value is None)
    assert output is not None
    mines = model is not None or adapter is not None
    if mines and negatives < 1:
        raise InputError(Problem("the model has nothing to mine", "--negatives", "1 or more", str(negatives)))
    from featherweight.data.load import load
    from featherweight.data.pairs import pairs_of

    loaded = load(data, pairs(columns))
    labels = tuple(part.strip() for part in positive.split(",")) if positive else ()
    made = pairs_of(loaded, seed=seed, negatives=0 if mines else negatives, positive=labels, sentences=sentences)
    files = places(output, made)
    if mines:
        from featherweight.evaluate.embed import mine

        encoder, _ = opened(adapter, model, "embedding", device)
        made = {split: mine(encoder, found, negatives, below=below, batch=batch, length=length)
                for split, found in made.items()}  # fmt: skip
    return written(output, files, made)


def written(output: Path, files: dict[str, Path], made: "dict[str, list[Example]]") -> Shown:
    """Write them, and say how many there are."""
    for split, file in files.items():
        write(file, made[split])
    counts = {split: len(found) for split, found in made.items()}
    hard = sum(len(e.choices) - 1 for found in made.values() for e in found)
    return Shown({"output": str(output), "pairs": counts, "negatives": hard}, tuple(lines(files, made)))


def places(output: Path, made: dict[str, Any]) -> dict[str, Path]:
    """The file of each split. Raises InputError for a file where there are several."""
    single = output.suffix == ".jsonl"
    if len(made) > 1 and single:
        fix = f"--output {output.with_suffix('')}"
        raise InputError(Problem("several splits do not fit one file", "--output", "a folder", str(output), fix))
    if not single and output.suffix:
        raise InputError(Problem("unknown kind of file", "--output", ".jsonl, or a folder", repr(str(output))))
    return {split: output if single else output / f"{split}.jsonl" for split in made}


def write(path: Path, found: "Sequence[Example]") -> None:
    """One pair a line, whole or not at all."""
    from featherweight.data.pairs import rows_of

    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(found)))


def lines(files: dict[str, Path], made: "dict[str, list[Example]]") -> list[str]:
    """What was written, and the first pairs of it."""
    first = next(iter(made.values()))[:SHOWN]
    shown = [f"  {short(e.text)}  →  {short(e.choices[0])}" + "".join(f"  ≠  {short(n)}" for n in e.choices[1:])
             for e in first]  # fmt: skip
    return [*(f"{len(made[split]):,} pairs: {file}" for split, file in files.items()), *shown]


def short(text: str, most: int = 50) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
