"""What long work over rows says while it runs: who is at it, and how far."""

from collections.abc import Callable
from time import monotonic

Say = Callable[[str], None]
EVERY = 5.0  # seconds between two lines about one contender


def quiet(text: str) -> None:
    """Says nothing."""


def teller(say: Say, head: str, every: float = EVERY, what: str = "rows") -> Callable[[int, int], None]:
    """What is told rows that are done: it says so, but not more often than every few seconds."""
    began = last = monotonic()

    def told(done: int, rows: int) -> None:
        nonlocal last
        now = monotonic()
        if done < rows and now - last >= every:
            last = now
            left = (now - began) / done * (rows - done)
            say(f"{head}: {done:,} of {rows:,} {what}, about {left:,.0f} s left")

    return told


class Progress:
    """Lines about `count` contenders over the same rows, each told its rows as they are done."""

    def __init__(self, say: Say, count: int, every: float = EVERY):
        self.say, self.count, self.every, self.number = say, count, every, 0

    def begin(self, name: str) -> Callable[[int, int], None]:
        """Announce a contender; what it tells after each batch."""
        self.number += 1
        head = f"{self.number}/{self.count} {name}"
        self.say(f"{head} …")
        return teller(self.say, head, self.every)
