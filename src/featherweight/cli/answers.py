"""Predictions as files: the columns of the input, then the answer's."""

import csv
import json
import os
from pathlib import Path
from typing import Any

from featherweight.cli.screen import jsonable

COLUMNS = ("label", "labels", "probability", "score", "text")  # what an answer may hold, in the order of the file


def answered(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The row with its answer after it. A column that is there already stays: ours becomes predicted_label."""
    ours = {name: answer[name] for name in (*COLUMNS, "probabilities") if name in answer}
    return {**row, **{f"predicted_{name}" if name in row else name: value for name, value in ours.items()}}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write .jsonl, or .csv and .tsv (without the full distributions), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.part")
    try:
        with staged.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(jsonable(row), ensure_ascii=False) + "\n" for row in rows)
            else:
                write_table(file, rows, "\t" if path.suffix == ".tsv" else ",")
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def write_table(file: Any, rows: list[dict[str, Any]], delimiter: str) -> None:
    """One column per scalar; lists are joined by commas."""
    flat = [{k: cell(v) for k, v in row.items() if not isinstance(v, dict)} for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(file, names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def cell(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
