"""`fw`: one command per verb, imported when it is called.

Exit codes: 0 done, 1 failed, 2 the input is wrong, 130 and 143 interrupted. `--json` prints exactly one object on
stdout and sends everything else to stderr; `--debug` shows the traceback of a failure.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from featherweight.cli.parse import Call, parse
from featherweight.cli.screen import Shown, failure, plain_streams, print_json
from featherweight.core.errors import FeatherweightError, InputError
from featherweight.files.notes import hush


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    plain_streams()
    quiet_libraries()
    call = Call.of(sys.argv[1:] if argv is None else argv)
    previous = on_terminate()
    try:
        return answer(call)
    except BrokenPipeError:  # the reader of our output went away: `fw data x | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def answer(call: Call) -> int:
    """Run the call and print its result or its failure."""
    try:
        shown = execute(call)
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if isinstance(error, BrokenPipeError):
            raise
        if call.debug:
            import traceback

            traceback.print_exc()
        code = exit_code(error)
        failure(call, error, code)
        return code
    if call.json:
        print_json({"command": call.name, "exit": shown.code, **shown.data})
    else:
        shown.print()
    return shown.code


def execute(call: Call) -> Shown:
    """The command's result. With --json whatever is printed meanwhile goes to stderr."""
    if not call.json:
        return parse(call)() or Shown()
    with redirect_stdout(io.StringIO()) as text, redirect_stdout(sys.stderr):
        command = parse(call)
        if command.help:
            with redirect_stdout(text):
                command()
            return Shown({"text": text.getvalue()})
        return command() or Shown()


def exit_code(error: BaseException) -> int:
    """130 and 143 for interruptions, 2 for wrong input, 1 for everything else."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, Terminated):
        return 143
    interrupted: Any = getattr(error, "code", None)
    if isinstance(error, FeatherweightError) and interrupted in (130, 143):
        return int(interrupted)
    return 2 if isinstance(error, InputError) else 1


class Terminated(BaseException):
    """SIGTERM outside the training loop, which has a handler of its own."""


def on_terminate() -> Any:
    """Turn SIGTERM into an exception, so that `finally` runs; None where signals are not ours to set (a thread)."""

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    try:
        return signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        return None


def quiet_libraries() -> None:
    """Third parties' progress bars and advice are not this command's output; a user's own setting wins."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hush()


if __name__ == "__main__":
    sys.exit(main())
