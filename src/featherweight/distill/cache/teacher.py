"""A teacher's outputs on disk: computed when a row first comes by, read from then on.

    epoch 1     teacher and student      rows are written as they come, in whatever order and batches
    epoch 2 …   the student alone        also in other runs, of other seeds, that use the same folder

A row goes by its tokens (`keys.row_keys`), so that order, batches, buckets and ranks do not matter; the cache as a
whole goes by the teacher's tensors, the tokenizer, the set of rows, what the recipe reads, its dtype and, of the most
probable classes alone, the temperature. Where any of these is another it is refused, or made anew where asked for.

A row's outputs are those of the batch that it was computed in: in fp32 they differ from those of another batch by
rounding, some 1e-6 of their size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featherweight.core.errors import FeatherweightError, InputError, Problem, did_you_mean, raise_all
from featherweight.distill.cache.coarse import Coarse, coarse
from featherweight.distill.cache.folder import opened
from featherweight.distill.cache.keys import row_keys, teacher_key, tokenizer_key
from featherweight.distill.cache.needs import Needs, needs
from featherweight.distill.cache.store import Store, Stream, table
from featherweight.distill.taps import Seen, Tap
from featherweight.tasks.modes import inner
from featherweight.tasks.token_loss import IGNORED

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHANGED = ("refuse", "recompute")
POSED = 64  # rows looked at together when their keys are made


@dataclass(frozen=True)
class TeacherCache:
    """Where a teacher's outputs are kept, and how.

    folder: of one cache, which any number of runs may share at once.
    top: keep the probabilities of so many classes and of all others as one (0: every logit). Losses between
    distributions are then lower bounds of the true ones (coarse.py).
    dtype: of the numbers on disk: "fp32" as computed, "bf16" or "fp16" half as large.
    changed: what happens where the folder's cache is of something else: "refuse", or "recompute".
    """

    folder: str | Path
    top: int = 0
    dtype: str = "fp32"
    changed: str = "refuse"

    def __post_init__(self) -> None:
        found = []
        for name, known in (("dtype", DTYPES), ("changed", CHANGED)):
            if (got := getattr(self, name)) not in known:
                found.append(Problem(f"unknown {name}", f"cache.{name}", got=repr(got), fix=did_you_mean(got, known)))
        if self.top < 0:
            found.append(Problem("no number of classes", "cache.top", "0 for all, or how many", str(self.top)))
        raise_all(found)

    def begin(self, distilled: Any, model: nn.Module, feed: Any, settings: Any, say: Callable[[str], None]) -> "Kept":
        """The cache for one run, opened or made. Raises InputError where the run cannot use one."""
        raise_all(unfit(distilled, settings))
        if redrawn(distilled.task, model, feed.collate(feed.items[:POSED]).tensors):
            raise InputError(Problem("the task changes its rows at every step: there is nothing to keep", "cache",
                                     got=repr(distilled.task), fix="leave the cache out"))  # fmt: skip
        rows, first = posed_rows(distilled.task, model, feed)
        device = next(model.parameters()).device
        read = needs(distilled, model, {name: t.to(device) for name, t in first.items()})
        T = float(getattr(distilled.recipe, "temperature", 1.0))
        if self.top and not 0 < self.top < read.logits:
            fix = (
                f"at most {read.logits - 1}, or 0 for all"
                if read.logits
                else "leave it out: the recipe reads no logits"
            )
            raise InputError(Problem("no such number of classes", "cache.top", fix, str(self.top)))
        about = {
            "teacher": teacher_key(distilled.pair),
            "tokenizer": tokenizer_key(cast(Any, model).tokenizer),
            "precision": settings.precision,
            **({"temperature": T} if self.top else {}),
        }
        streams = read.streams(self.dtype, self.top)
        store = opened(Path(self.folder), about, table(rows), streams, self.changed == "recompute", say)
        if store.finished:
            say(f"teacher cache: {store.finished:,} of {len(store):,} rows are there already")
        return Kept(store, read, T)


def unfit(distilled: Any, settings: Any) -> list[Problem]:
    """Runs whose teacher sees something new at every step."""
    found = []
    if getattr(distilled.recipe, "writes", False):
        found.append(Problem("what the student writes is new at every step: there is nothing to keep", "cache",
                             got=repr(distilled.recipe), fix="leave the cache out"))  # fmt: skip
    if settings.packing:
        found.append(Problem("packed rows have no outputs of their own", "packing", fix="leave it or the cache out"))
    return found


def redrawn(task: Any, model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether training shows a row in another form each time: found out by looking twice."""
    core, before = inner(model), inner(model).training
    core.training = True
    try:
        with torch.random.fork_rng():
            return row_keys(*task.pose(model, batch)) != row_keys(*task.pose(model, batch))
    finally:
        core.training = before


def posed_rows(task: Any, model: nn.Module, feed: Any) -> tuple[dict[bytes, tuple[int, int]], Mapping[str, Tensor]]:
    """key -> (units, tokens) of every training row, and a batch of the first."""
    found: dict[bytes, tuple[int, int]] = {}
    for start in range(0, len(feed.items), POSED):
        given, targets = task.pose(model, feed.collate(feed.items[start : start + POSED]).tensors)
        tokens = given["attention_mask"].sum(1).tolist()
        units = [1] * len(tokens) if targets is None else (targets != IGNORED).sum(1).tolist()
        found |= zip(row_keys(given, targets), zip(units, tokens, strict=True), strict=True)
    return found, feed.collate([feed.items[0]]).tensors


class Kept:
    """A cache in use: what a teacher shows of a batch, from disk as far as it is there."""

    def __init__(self, store: Store, read: Needs, T: float):
        self.store, self.needs, self.T = store, read, T
        self.streams = {s.name: s for s in store.streams}

    def taught(self, tap: Tap, given: Mapping[str, Tensor], targets: Tensor | None) -> Seen:
        """The rows of a batch; those that are not there are computed and written first."""
        try:
            rows = [self.store.number[key] for key in row_keys(given, targets)]
        except KeyError:
            raise FeatherweightError(
                f"{self.store.folder}: a row that was not among the training rows when the cache was opened"
            ) from None
        missing = [place for place, row in enumerate(rows) if not self.store.has(row)]
        if missing:
            self.learn(tap, given, targets, rows, missing)
        real = given["attention_mask"].bool()
        return self.seen(
            tap, real, real if self.needs.where == "token" or targets is None else targets != IGNORED, rows
        )

    def learn(self, tap: Tap, given: Mapping[str, Tensor], targets: Tensor | None, rows: Sequence[int],
              missing: Sequence[int]) -> None:  # fmt: skip
        """Let the teacher compute some rows of a batch, and write them."""
        chosen = torch.tensor(missing, device=given["input_ids"].device)
        some = {name: t.index_select(0, chosen) for name, t in given.items()}
        with torch.no_grad():
            seen = tap(some)
        real = some["attention_mask"].bool()
        trained = None if targets is None else targets.index_select(0, chosen) != IGNORED
        found: dict[int, dict[str, bytes]] = {}
        for at, place in enumerate(missing):
            units = slice(None) if trained is None else trained[at]
            logits = seen.logits[at][None] if trained is None else seen.logits[at][units]
            shown = self.shown(seen, logits, at, real[at], real[at] if self.needs.where == "token" else units)
            found[rows[place]] = {name: self.bytes_of(name, t) for name, t in shown.items()}
        self.store.write(found)

    def shown(self, seen: Seen, logits: Tensor, at: int, real: Tensor, states: Any) -> dict[str, Tensor]:
        """What is kept of one row of a forward, by stream; `states` are the places of its hidden states."""
        found = {f"hidden.{i}": seen.hidden[i][at][states] for i in self.needs.hidden}
        found |= {f"read.{i}": seen.read[i][at][real] for i in self.needs.read}
        found |= {f"{role}.{block}": seen.projected[block][role][at][real] for block, role in self.needs.projected}
        if "top" in self.streams:
            found["top"], found["words"] = coarse(logits, self.streams["words"].width, self.T)
        elif self.needs.logits:
            found["logits"] = logits
        return found

    def bytes_of(self, name: str, tensor: Tensor) -> bytes:
        """A tensor as its stream keeps it. Raises FeatherweightError for numbers that the dtype has not."""
        dtype = self.streams[name].dtype
        if dtype == "int32":
            return tensor.to(torch.int32).cpu().numpy().tobytes()
        made = tensor.to(DTYPES[dtype])
        if (made.isinf() & ~tensor.isinf()).any():
            raise FeatherweightError(f"{self.store.folder}: {name} holds numbers that {dtype} does not; take bf16")
        made = made.cpu().contiguous()
        return (made.view(torch.uint16) if dtype == "bf16" else made).numpy().tobytes()

    def seen(self, tap: Tap, real: Tensor, states: Tensor, rows: Sequence[int]) -> Seen:
        """The rows as one forward would have shown them, with zeros where there is padding."""
        hidden = Partly(self.tokens(f"hidden.{i}", states, rows) if i in self.needs.hidden else None
                        for i in range(self.needs.states[0]))  # fmt: skip
        read = Partly(self.tokens(f"read.{i}", real, rows) if i in self.needs.read else None
                      for i in range(self.needs.states[1]))  # fmt: skip
        projected: dict[int, dict[str, Tensor]] = {}
        for block, role in self.needs.projected:
            projected.setdefault(block, {})[role] = self.tokens(f"{role}.{block}", real, rows)
        if "top" in self.streams:
            log_p, words = (self.stacked(name, rows, real.device) for name in ("top", "words"))
            return Coarse(log_p, hidden, projected, tap.heads, read, words.long(), self.T)
        logits = self.stacked("logits", rows, real.device) if self.needs.logits else torch.empty(0, device=real.device)
        return Seen(logits, hidden, projected, tap.heads, read)

    def stacked(self, name: str, rows: Sequence[int], device: torch.device) -> Tensor:
        """(units or tokens of all rows, width)."""
        stream = self.streams[name]
        return tensor_of(numpy.concatenate([self.store.read(stream, row) for row in rows]), stream).to(device)

    def tokens(self, name: str, real: Tensor, rows: Sequence[int]) -> Tensor:
        """(batch, seq, width) with the rows' tokens at the real places."""
        flat = self.stacked(name, rows, real.device)
        made = flat.new_zeros(*real.shape, flat.shape[-1])
        made[real] = flat
        return made


def tensor_of(values: NDArray[Any], stream: Stream) -> Tensor:
    made = torch.from_numpy(values)
    return made.view(torch.bfloat16) if stream.dtype == "bf16" else made


class Partly(tuple[Any, ...]):
    """Hidden states of which some are kept."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        if found is None:
            raise FeatherweightError(f"hidden state {at} of the teacher was not read when the cache was opened")
        return found
