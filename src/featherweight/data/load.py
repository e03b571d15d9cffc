"""`load`: whatever the user calls data (file, weighted files, folder of splits, hub name, dicts) to splits."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.data.names import ANSWERS
from featherweight.data.read import KINDS, Columns, missing, read
from featherweight.data.rows import examples
from featherweight.data.shape import Shape, shape_of
from featherweight.data.types import Row, Rows

SPLITS = {
    "train": ("train", "training", "trainset"),
    "valid": ("valid", "validation", "val", "dev", "eval", "devset", "validset"),
    "test": ("test", "testset"),
}
WEIGHTED = re.compile(r"^(?P<path>.+):(?P<weight>\d+(\.\d+)?([eE][-+]?\d+)?)$")


@dataclass(frozen=True, slots=True)
class Data:
    """Rows by split, all of one shape and all checked; `weights`: one number per source file of `train`, or None;
    `name`: what it was read from, where that has one."""

    train: Sequence[Row]
    valid: Sequence[Row] = ()
    test: Sequence[Row] = ()
    shape: Shape = field(default_factory=lambda: Shape("text"))
    weights: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    name: str = ""


def load(source: Any, columns: Columns = None) -> Data:
    """Rows, their shape, and every bad field of every split in one InputError.

    source: a path; `"a.jsonl:0.7,b.jsonl:0.3"`, `{"a.jsonl": 0.7}` or a list of paths; a folder with train/valid/test
    (or dev, val, validation) files; `owner/name` of a hub dataset; a list of dicts; or a dict of split → any of those.
    """
    splits, weights = gather(source, columns)
    train = splits.get("train") or next(iter(splits.values()))
    shape = shape_of(train, columns)
    problems: list[Problem] = []
    for rows in splits.values():
        collect(problems, examples, rows, fitting(rows, shape))
    raise_all(problems)
    notes = (*(n for rows in splits.values() for n in rows.notes), *unused(train, shape))
    held = {name: rows for name, rows in splits.items() if name in SPLITS}
    return Data(**{"train": Rows(), **held}, shape=shape, weights=weights, notes=notes, name=named(source))


def named(source: Any) -> str:
    """A path, or a name on the hub; rows in memory have none."""
    return str(source) if isinstance(source, str | Path) else ""


def unused(rows: Sequence[Row], shape: Shape) -> list[str]:
    """A note on the columns that no role was found for: an abstract beside its title should not vanish unseen."""
    seen = dict.fromkeys(key for row in rows for key in row.fields)
    left = [str(column) for column in seen if column not in shape.columns.values()]
    return [f"columns that are not used: {listed(left)} (--columns maps others)"] if left else []


def fitting(rows: Sequence[Row], shape: Shape) -> Shape:
    """The shape for a split that may carry no answers at all (an unlabelled test file), or alone does."""
    answers = [c for role, c in shape.columns.items() if role in ANSWERS]
    bare = bool(answers) and not any(row.fields.get(answers[0]) not in (None, "") for row in rows)
    return replace(shape, labelled=not bare if answers else shape.labelled)


def collect(problems: list[Problem], work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What the work returns; its problems are kept for later."""
    try:
        return work(*args, **options)
    except InputError as error:
        problems.extend(error.problems)
        return None


def gather(source: Any, columns: Columns) -> tuple[dict[str, Rows], tuple[float, ...] | None]:
    """Rows by split, and the weights of a mixture."""
    if isinstance(source, Mapping) and source and set(source) <= set(SPLITS):
        return {name: mixture([part], [1.0], columns) for name, part in source.items()}, None
    if isinstance(source, Mapping):
        return {"train": mixture(list(source), list(source.values()), columns)}, tuple(map(float, source.values()))
    if not isinstance(source, str | Path):
        return several(list(source), columns)
    path = Path(source)
    if path.is_dir():
        return folder(path, columns), None
    if path.exists() or (path.suffix.lower() in KINDS and "," not in str(source)):
        return {"train": read(path, columns)}, None
    parts = [part.strip() for part in str(source).split(",") if part.strip()]
    if len(parts) > 1 or WEIGHTED.match(str(source)):
        return several(parts, columns)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.suffix and not path.parent.exists():
        return hub(str(source)), None
    raise InputError(missing(path))


def several(parts: list[Any], columns: Columns) -> tuple[dict[str, Rows], tuple[float, ...] | None]:
    """Dicts in memory, or paths with or without `:weight`."""
    if not parts or not all(isinstance(p, str | Path) for p in parts):
        return {"train": read(parts, columns)}, None
    found = [(p, None) if Path(p).exists() else split_weight(str(p)) for p in parts]
    given = [w for _, w in found if w is not None]
    if given and len(given) < len(found):
        bare = [str(p) for p, w in found if w is None]
        raise InputError(Problem("a mixture with and without weights", listed(bare), "a weight on every file or none"))
    rows = mixture([p for p, _ in found], [1.0 if w is None else w for _, w in found], columns)
    return {"train": rows}, tuple(given) or None


def split_weight(part: str) -> tuple[str, float | None]:
    found = WEIGHTED.match(part)
    return (found["path"], float(found["weight"])) if found else (part, None)


def mixture(parts: Sequence[Any], weights: Sequence[Any], columns: Columns) -> Rows:
    """All files' rows, each marked with its source; the problems of all files together."""
    problems = [
        Problem("bad weight", str(part), "a positive number", repr(weight))
        for part, weight in zip(parts, weights, strict=True)
        if not isinstance(weight, int | float) or not weight > 0
    ]
    read_ = [collect(problems, read, part, columns) for part in parts]
    raise_all(problems)
    if columns is None and len({frozenset(rows[0].fields) for rows in read_}) > 1:
        read_ = alike(read_)
    rows = [replace(row, source=i) for i, rows in enumerate(read_) for row in rows]
    return Rows(rows, [n for found in read_ for n in found.notes])


def alike(files: Sequence[Rows]) -> list[Rows]:
    """Files of one shape and unlike columns (question, answer; mr, ref), their columns renamed to what they are for."""
    problems: list[Problem] = []
    shapes = [collect(problems, shape_of, rows) for rows in files]
    raise_all(problems)
    kinds = [f"{rows[0].where.rsplit(':', 1)[0]}: {s.name}" for rows, s in zip(files, shapes, strict=True)]
    if len({shape.name for shape in shapes}) > 1:
        fix = "make one shape of them, or train on one after the other with --from"
        raise InputError(
            Problem("the files of a mixture mean different things", "data", "one shape", listed(kinds), fix)
        )
    return [
        Rows([replace(r, fields={role: r.fields.get(c) for role, c in s.columns.items()}) for r in rows], rows.notes)
        for rows, s in zip(files, shapes, strict=True)
    ]


def folder(path: Path, columns: Columns) -> dict[str, Rows]:
    """The split files of a folder: train.csv, dev.jsonl … Raises InputError where train is missing or doubled."""
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in KINDS)
    found = {name: split_files(files, stems) for name, stems in SPLITS.items()}
    if not found["train"]:
        got = listed([p.name for p in sorted(path.iterdir())])
        raise InputError(Problem("no training file in the folder", str(path), f"train with one of {listed(KINDS)}", got,
                                 "rename the file, or name it instead of its folder"))  # fmt: skip
    raise_all(Problem(f"several files for {name}", str(path), "one", listed([p.name for p in ps]))
              for name, ps in found.items() if len(ps) > 1)  # fmt: skip
    problems: list[Problem] = []
    rows = {name: collect(problems, read, ps[0], columns) for name, ps in found.items() if ps}
    raise_all(problems)
    return rows


def split_files(files: Sequence[Path], stems: Sequence[str]) -> list[Path]:
    """The files of that very name (train.csv), else those that have it as a part (dialogsum.train.jsonl,
    train-00000-of-00001.parquet)."""
    whole = [p for p in files if p.stem.lower() in stems]
    return whole or [p for p in files if set(re.split(r"[._-]+", p.stem.lower())) & set(stems)]


def hub(name: str) -> dict[str, Rows]:
    """A dataset of the hub by its name. Raises InputError when it cannot be had, offline for example."""
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        got, fix = str(error).splitlines()[0], "check the name and the network, or give a file"
        raise InputError(Problem("neither a file nor a hub dataset in reach", name, got=got, fix=fix)) from error
    splits = {s: loaded[k] for s, stems in SPLITS.items() for k in loaded if k in stems}
    if "train" not in splits:
        raise InputError(Problem("the hub dataset has no train split", name, "train", listed(list(loaded))))
    return {split: hub_rows(f"{name}/{split}", table) for split, table in splits.items()}


def hub_rows(where: str, table: Iterable[Any]) -> Rows:
    """Records of a split; class numbers become the names that the dataset gives them."""
    named = {c: f for c, f in getattr(table, "features", {}).items() if hasattr(f, "int2str")}
    return Rows(
        Row(
            {k: named[k].int2str(v) if k in named and v is not None and v >= 0 else v for k, v in r.items()},
            f"{where}:{i}",
        )
        for i, r in enumerate(table, 1)
    )
