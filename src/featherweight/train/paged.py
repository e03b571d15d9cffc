"""Paged optimizer states: they lie where a step need not hold them all, and are brought in chunk by chunk.

    step    for each chunk of parameters    take its states  ->  the optimizer's own update  ->  give them back

On a CPU the states lie in a file that is mapped into memory: the system keeps of it what there is room for and writes
the rest to disk. The file has no name, so that nothing of it is left when the process ends, however it ends. On a GPU
they lie in pinned memory of the CPU. (QLoRA 2023, section 3, pages through the GPU's driver.)

A chunk's update is that of the optimizer it pages, and no update reads another parameter's state: AdamW, Adafactor and
SGD give equal bits, paged or not, and their checkpoints are the same files.
"""

import mmap
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from weakref import finalize

import torch
from torch import Tensor, nn

from featherweight.core.errors import FeatherweightError, InputError, Problem
from featherweight.train.store import reason

LEAST = 16 << 10  # bytes of a state that is worth a page; a smaller one stays in memory
Kept = dict[tuple[int, str], Tensor]  # (id of a parameter, name of a state) -> where it lies


class Home(ABC):
    """Where states lie between steps. What `keep` gave is marked by an attribute `paged`."""

    chunk: ClassVar[int]  # bytes of parameters that are updated at a time (one parameter at least)

    @abstractmethod
    def keep(self, state: Tensor) -> Tensor:
        """A new state's tensor here, with its values."""

    @abstractmethod
    def take(self, kept: Tensor) -> Tensor:
        """What the optimizer works on in its place."""

    @abstractmethod
    def give(self, kept: Tensor, worked: Tensor) -> None:
        """Put back what was worked on."""

    def settle(self) -> None:  # noqa: B027  # most homes have nothing to wait for
        """Return when everything given has arrived."""


class PageFile(Home):
    """A nameless file in `folder`. Raises InputError where none can be made, FeatherweightError where the disk is
    full."""

    chunk = 1 << 20

    def __init__(self, folder: Path):
        self.folder, self.size = folder, 0
        if in_memory(folder):
            raise InputError(Problem("paged states would lie in memory: the folder is not on a disk", str(folder),
                                     fix="give an output folder on a disk, or set TMPDIR to one"))  # fmt: skip
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                self.handle = os.dup(file.fileno())
        except OSError as error:
            raise InputError(Problem("no file for paged optimizer states can be made", str(folder), got=reason(error),
                                     fix="choose another output, or train without paged"))  from error  # fmt: skip
        finalize(self, os.close, self.handle)

    def keep(self, state: Tensor) -> Tensor:
        flat = state.detach().to("cpu").contiguous().view(-1)
        pages = self.written(flat.view(torch.uint8).numpy().data)
        kept = torch.frombuffer(pages, dtype=state.dtype).view(state.shape)
        kept.paged = pages  # type: ignore[attr-defined]
        self.give(kept, kept)
        return kept

    def written(self, data: memoryview) -> mmap.mmap:
        """The mapping of `data` at the end of the file. Written, not only made room for: a disk that is full says so
        here and not by a signal when a page is touched."""
        start, unit = self.size, mmap.ALLOCATIONGRANULARITY
        try:
            at = 0
            while at < len(data):
                at += os.pwrite(self.handle, data[at:], start + at)
            self.size = -(-(start + len(data)) // unit) * unit
            return mmap.mmap(self.handle, len(data), offset=start)
        except OSError as error:
            raise FeatherweightError(f"{self.folder}: the optimizer's states cannot be paged, {reason(error)} "
                                     f"({error.strerror}) at {start + len(data):,} bytes") from error  # fmt: skip

    def take(self, kept: Tensor) -> Tensor:
        return kept

    def give(self, kept: Tensor, worked: Tensor) -> None:
        if worked is not kept:
            kept.copy_(worked)
        if sys.platform == "linux":  # out of this process's memory; the system writes it to disk when it needs room
            kept.paged.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


class HostMemory(Home):
    """Memory of the CPU, pinned where the device is a GPU."""

    chunk = 32 << 20

    def __init__(self, device: torch.device):
        self.device, self.pinned = device, device.type == "cuda"

    def keep(self, state: Tensor) -> Tensor:
        kept = torch.empty(state.shape, dtype=state.dtype, pin_memory=self.pinned)
        kept.paged = True  # type: ignore[attr-defined]
        self.give(kept, state)
        return kept

    def take(self, kept: Tensor) -> Tensor:
        return kept.to(self.device, non_blocking=self.pinned, copy=True)

    def give(self, kept: Tensor, worked: Tensor) -> None:
        kept.copy_(worked.detach(), non_blocking=self.pinned)

    def settle(self) -> None:
        if self.pinned:
            torch.cuda.synchronize(self.device)


def home(device: torch.device, folder: Path | None) -> Home:
    """Where states of parameters on `device` lie: `folder` (None: the system's folder for temporary files) on a CPU."""
    if device.type in ("cpu", "mps"):
        return PageFile(folder or Path(tempfile.gettempdir()))
    return HostMemory(device)


class Paged(torch.optim.Optimizer):
    """Mixin of paged optimizers' classes."""

    home: Home

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The optimizer's own step, over one chunk of parameters after the other."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        groups = self.param_groups
        try:
            for group in groups:
                for chunk in chunks([p for p in group["params"] if p.grad is not None], self.home.chunk):
                    self.param_groups = [group | {"params": chunk}]
                    kept = self.take(chunk)
                    super().step()
                    self.give(chunk, kept)
        finally:
            self.param_groups = groups
        self.home.settle()
        return loss

    def take(self, chunk: Sequence[nn.Parameter]) -> Kept:
        """Put what the optimizer works on in place of the chunk's paged states, which are the result."""
        kept: Kept = {}
        for p in chunk:
            for what, t in self.state.get(p, {}).items():
                if hasattr(t, "paged"):
                    kept[id(p), what] = t
                    self.state[p][what] = self.home.take(t)
        return kept

    def give(self, chunk: Sequence[nn.Parameter], kept: Kept) -> None:
        """Page the chunk's states: those that were, and new ones."""
        for p in chunk:
            for what, t in self.state[p].items():
                if (id(p), what) in kept:
                    self.home.give(kept[id(p), what], t)
                    self.state[p][what] = kept[id(p), what]
                elif isinstance(t, Tensor):
                    self.state[p][what] = self.hold(t)

    def hold(self, state: Tensor) -> Tensor:
        """A state paged, or as it is where that is not worth it."""
        return self.home.keep(state) if state.nbytes >= LEAST else state


def page(optimizer: torch.optim.Optimizer, home: Home) -> torch.optim.Optimizer:
    """Make an optimizer a paged one, in place."""
    cls: Any = type(optimizer)
    optimizer.__class__ = paged_class(cls)
    optimizer.home = home  # type: ignore[attr-defined]
    return optimizer


@cache
def paged_class(cls: Any) -> Any:
    return type(f"Paged{cls.__name__}", (Paged, cls), {})


def chunks(parameters: Sequence[nn.Parameter], size: int) -> Iterator[list[nn.Parameter]]:
    """Neighbors, up to `size` bytes together."""
    chunk: list[nn.Parameter] = []
    for p in parameters:
        if chunk and sum(q.nbytes for q in chunk) + p.nbytes > size:
            yield chunk
            chunk = []
        chunk.append(p)
    if chunk:
        yield chunk


def in_memory(folder: Path) -> bool:
    """Whether the folder's file system is known to be memory (Linux's tmpfs)."""
    try:
        device, mounts = folder.stat().st_dev, Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False  # no such folder, which making the file tells of; or not Linux
    here = f"{os.major(device)}:{os.minor(device)}"
    return any(m.split()[2] == here and m.split(" - ")[1].split()[0] in ("tmpfs", "ramfs") for m in mounts)


@contextmanager
def room(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Turn an allocation that fails in an update into a FeatherweightError that gives the size and the way out."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        out = "train fewer of them" if isinstance(optimizer, Paged) else "paged=True keeps states on disk"
        raise FeatherweightError(
            f"no memory left for the update: {type(optimizer).__name__} keeps states beside {len(trained)} trained "
            f"tensors of {sum(p.nbytes for p in trained):,} bytes; {out}, or adafactor keeps less"
        ) from error
