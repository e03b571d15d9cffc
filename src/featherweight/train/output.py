"""The output folder: who may write into it, what a resumed run must have in common with it, what lies in it at the end.

adapter_config.json  adapter_model.safetensors  tokenizer files  README.md     for use
run.toml  metrics.jsonl  loss.png  loss.svg  checkpoints/step-N/               of the run
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.types import Encoded
from featherweight.train.lock import LOCK, locked
from featherweight.train.store import Checkpoint, latest

RUN, METRICS, CHECKPOINTS = "run.toml", "metrics.jsonl", "checkpoints"


@contextmanager
def claim(folder: Path, resume: bool) -> Iterator[None]:
    """The folder, made where it is missing, for this run alone. Raises InputError where results of another run would be
    lost, where another run is at work, and where nothing can be written."""
    if folder.exists() and not folder.is_dir():
        raise InputError(Problem("the output is a file, not a folder", str(folder), fix="choose another output"))
    new = not folder.exists()
    try:
        with locked(folder):
            settled(folder, resume)
            yield
    finally:
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # nothing came of the run: no trace of it


def settled(folder: Path, resume: bool) -> None:
    """Raise InputError for a folder that holds something which is not this run's to go on with."""
    there = {path.name for path in folder.iterdir()} - {LOCK}
    if there and not resume:
        raise InputError(Problem("the output folder is not empty", str(folder),
                                 fix="resume the run that is in it, or choose another output"))  # fmt: skip
    if there and not there & {RUN, METRICS, CHECKPOINTS}:
        raise InputError(Problem("the output folder holds no run to resume", str(folder), fix="choose another output"))


def resumable(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint to go on from; None when the run had none yet. Raises InputError over what has changed."""
    found = latest(folder / CHECKPOINTS)
    if found is not None:
        then, now = flat(found.files["identity"]), flat(json.loads(json.dumps(identity)))
        raise_all(Problem("changed since the run began", key, expected=repr(then.get(key)), got=repr(now.get(key)),
                          fix="put it back, or start another run in another output")
                  for key in dict.fromkeys([*then, *now]) if then.get(key) != now.get(key))  # fmt: skip
    return found


def flat(form: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    out: dict[str, Any] = {}
    for name, v in form.items():
        here = f"{path}.{name}" if path else name
        out |= flat(v, here) if isinstance(v, Mapping) else {here: v}
    return out


def hash_rows(rows: Sequence[Encoded]) -> str:
    """SHA-256 over what is trained on: ids and labels, in order (so a change of tokenizer or length shows too)."""
    digest = sha256()
    for row in rows:
        labels = row.labels if isinstance(row.labels, list) else [row.labels]
        choices = (("|", *ids) for ids in row.choices or ())
        digest.update(",".join(map(str, chain(row.input_ids, "|", labels, *choices))).encode() + b"\n")
    return digest.hexdigest()
