"""Predictions as files: the columns of the input, then the answer's."""

import csv
import json
from pathlib import Path
from typing import Any

from featherweight.cli.screen import jsonable
from featherweight.core.errors import InputError, Problem
from featherweight.files.staged import staged

# What an answer may hold, in the order of the file.
COLUMNS = ("label", "labels", "tags", "text", "rationale", "probability", "score", "start", "end", "no_answer")
LONG = ("probabilities", "embedding", "entities", "tokens")  # for programs: not on the screen
WORDS = ("tags", "tokens", "predicted_tags", "predicted_tokens")  # lists with white space between in a table, as read


def answered(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The row with its answer after it. A column that is there already stays: ours becomes predicted_label."""
    ours = {name: answer[name] for name in (*COLUMNS, *LONG) if name in answer}
    return {**row, **{f"predicted_{name}" if name in row else name: value for name, value in ours.items()}}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write .jsonl, .csv and .tsv (without the full distributions), or the embeddings alone as .npy, whole or not at
    all."""
    with staged(path) as beside:
        if path.suffix == ".npy":
            write_array(beside, rows)
            return
        with beside.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(jsonable(row), ensure_ascii=False) + "\n" for row in rows)
            else:
                write_table(file, rows, "\t" if path.suffix == ".tsv" else ",")


def write_array(path: Path, rows: list[dict[str, Any]]) -> None:
    """(rows, d) in fp32, in the order of the rows. Raises InputError for answers that are no embeddings."""
    import numpy as np

    found = [row.get("predicted_embedding", row.get("embedding")) for row in rows]
    if any(vector is None for vector in found):
        fix = "--task embedding, or --output answers.jsonl"
        raise InputError(Problem("a .npy file holds embeddings", "--output", "a task that embeds", fix=fix))
    with path.open("wb") as file:
        np.save(file, np.array(found, dtype=np.float32))


def write_table(file: Any, rows: list[dict[str, Any]], delimiter: str) -> None:
    """One column per scalar; lists are joined by commas, words by spaces; records are left out."""
    flat = [{k: cell(v, " " if k in WORDS else ",") for k, v in row.items() if not records(v)} for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(file, names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def records(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))


def cell(value: Any, between: str = ",") -> Any:
    return between.join(map(str, value)) if isinstance(value, list | tuple) else value
