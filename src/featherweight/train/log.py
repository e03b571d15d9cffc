"""What a run says: metrics.jsonl always, a progress bar on a terminal and plain lines elsewhere, TensorBoard if asked.

A line of metrics.jsonl holds what is computed; everything that the clock decides is under its key `time`, so that the
histories of an interrupted and of an uninterrupted run can be compared.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from featherweight.core.errors import InputError, Problem


class Journal:
    """The history, in memory and in `path` where one is given."""

    def __init__(self, path: Path | None = None, lines: int = 0):
        """Go on after the first `lines` lines of the file: what an interrupted run wrote later is dropped."""
        self.path = path
        self.history: list[dict[str, Any]] = []
        if path is not None:
            kept = path.read_bytes().splitlines(keepends=True)[:lines] if lines and path.exists() else []
            self.history = [json.loads(line) for line in kept]
            with path.open("ab") as file:
                file.truncate(sum(map(len, kept)))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it."""
        self.history.append(dict(record))
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(record) + "\n")

    def sync(self) -> None:
        """Make the lines durable, so that a checkpoint never knows more lines than the disk."""
        if self.path is not None and self.path.exists():
            handle = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


class Voice(Protocol):
    """Where a run tells people how it goes."""

    def say(self, text: str) -> None: ...
    def step(self, step: int, total: int, loss: float, speed: float) -> None: ...
    def close(self) -> None: ...


class Silent:
    """Ranks other than the first."""

    def say(self, text: str) -> None: ...
    def step(self, step: int, total: int, loss: float, speed: float) -> None: ...
    def close(self) -> None: ...


class Plain:
    """Lines on stderr, a tenth of the run apart."""

    told = -1

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def step(self, step: int, total: int, loss: float, speed: float) -> None:
        if 10 * step // total > self.told or step == total:
            self.told = 10 * step // total
            self.say(f"step {step}/{total}  loss {loss:.4f}  {speed:,.0f} tokens/s")

    def close(self) -> None: ...


class Bar:
    """One moving line on a terminal: loss, tokens per second, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"),
                            TimeRemainingColumn(), console=Console(stderr=True))  # fmt: skip
        self.task = self.bar.add_task("train", total=None, shown="")
        self.bar.start()

    def say(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)

    def step(self, step: int, total: int, loss: float, speed: float) -> None:
        self.bar.update(self.task, total=total, completed=step, shown=f"loss {loss:.4f}  {speed:,.0f} tokens/s")

    def close(self) -> None:
        self.bar.stop()


def voice(main: bool) -> Voice:
    """The bar on a terminal, lines elsewhere, nothing on other ranks."""
    if not main:
        return Silent()
    return Bar() if sys.stderr.isatty() else Plain()


_said: ContextVar[set[str] | None] = ContextVar("said", default=None)


@contextmanager
def suite() -> Iterator[None]:
    """Several runs of one command: what `once` says of the first is not said again of the others."""
    token = _said.set(set())
    try:
        yield
    finally:
        _said.reset(token)


def once(say: Callable[[str], None]) -> Callable[[str], None]:
    """For what is the same in every run of a suite (its recipe, its data): the same words are said once."""

    def told(text: str) -> None:
        said = _said.get()
        if said is None or text not in said:
            say(text)
        if said is not None:
            said.add(text)

    return told


class Board:
    """TensorBoard event files in `folder`."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(Problem("TensorBoard is not installed", "tensorboard",
                                     fix="pip install 'featherweight[trackers]'")) from error  # fmt: skip
        self.writer = SummaryWriter(str(folder))

    def write(self, record: Mapping[str, Any]) -> None:
        """Every number of a record, under its name."""
        flat = {**record, **{f"dev/{k}": v for k, v in record.get("dev", {}).items()}}
        for name, value in flat.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()
