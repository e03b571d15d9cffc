"""What a method reads before the first step (FishMask, EVA, learned steps of inputs), told while it is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic

from torch import Tensor

from featherweight.core.prepare import Batches, Loss

EVERY = 5.0  # seconds between two lines


class Measured(Batches):
    """Batches that say of `name` that it reads them, how far it is, and what it took."""

    def __init__(
        self, name: str, make: Callable[[], Iterable[Mapping[str, Tensor]]], loss: Loss, say: Callable[[str], None],
        every: float = EVERY,
    ):  # fmt: skip
        super().__init__(make, loss, say)
        self.tell, self.name, self.every, self.rows = say, name, every, 0
        self.began = self.last = monotonic()

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        if not self.rows:
            self.tell(f"{self.name}: measuring on the training rows, before step 1 …")
        for batch in self.make():
            if monotonic() - self.last >= self.every:
                self.last = monotonic()
                self.tell(f"{self.name}: {self.rows:,} rows so far, {self.last - self.began:,.0f} s")
            self.rows += len(next(iter(batch.values())))
            yield batch

    def done(self) -> None:
        """Say what it took, where anything was read."""
        if self.rows:
            self.tell(f"{self.name}: measured on {self.rows:,} rows in {monotonic() - self.began:,.1f} s")
