"""Signals: the first one asks for an orderly end (finish the step, save), the second one ends at once.

The loop polls `Stop.signal` at every boundary; nothing is ever saved from inside a handler.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from featherweight.core.errors import FeatherweightError

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Stopped(FeatherweightError):
    """A signal ended the run; `code` is the exit status of a shell (130 for SIGINT, 143 for SIGTERM)."""

    def __init__(self, number: int, step: int = 0, saved: str = ""):
        self.code = 128 + number
        self.step = step
        self.saved = saved
        where = f"step {step} is saved in {saved}; go on with resume" if saved else "nothing had to be saved"
        super().__init__(f"stopped by {signal.Signals(number).name}: {where}")


class Stop:
    """Context manager that records signals while it is open and puts the old handlers back.

    Outside the main thread Python forbids handlers: then nothing is recorded and the host program stays in charge.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.handle) for number in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)  # the second one: now, whatever is going on
        self.signal = number

    def check(self) -> None:
        """Raise Stopped when a signal came and there is nothing to save (before the first step)."""
        if self.signal:
            raise Stopped(self.signal)
