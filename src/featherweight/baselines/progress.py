"""What a long comparison says while it runs: what is ahead, who is at it, how far, and each result as it is there."""

from collections.abc import Callable
from time import monotonic

Say = Callable[[str], None]
EVERY = 5.0  # seconds between two lines about one contender


def quiet(text: str) -> None:
    """Says nothing."""


class Progress:
    """Lines about `count` contenders over the same rows, each `told` its rows as they are done."""

    def __init__(self, say: Say, count: int, every: float = EVERY):
        self.say, self.count, self.every, self.number = say, count, every, 0

    def begin(self, name: str) -> Callable[[int, int], None]:
        """Announce a contender; what it calls after each batch."""
        self.number += 1
        head, began = f"{self.number}/{self.count} {name}", monotonic()
        last = began
        self.say(f"{head} …")

        def told(done: int, rows: int) -> None:
            nonlocal last
            now = monotonic()
            if done < rows and now - last >= self.every:
                last = now
                left = (now - began) / done * (rows - done)
                self.say(f"{head}: {done:,} of {rows:,} rows, about {left:,.0f} s left")

        return told
