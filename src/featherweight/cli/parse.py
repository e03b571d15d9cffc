"""From words on a command line to a command that is ready to run, or every problem with them at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError
from cyclopts.exceptions import UnusedCliTokensError

from featherweight.cli.app import COMMANDS, OWN_FLAGS, app
from featherweight.cli.gathered import gathered
from featherweight.core.errors import InputError, Problem, did_you_mean


@dataclass(frozen=True, slots=True)
class Call:
    """A command line without the two flags that every command takes."""

    tokens: tuple[str, ...]
    json: bool = False
    debug: bool = False

    @classmethod
    def of(cls, argv: Sequence[str]) -> "Call":
        return cls(tuple(t for t in argv if t not in ("--json", "--debug")), "--json" in argv, "--debug" in argv)

    @property
    def name(self) -> str:
        return self.tokens[0] if self.tokens and self.tokens[0] in COMMANDS else "fw"


@dataclass(frozen=True, slots=True)
class Command:
    """A parsed call. `help` marks the screens that cyclopts prints itself: help and version."""

    run: Callable[[], Any]
    help: bool

    def __call__(self) -> Any:
        return self.run()


def parse(call: Call) -> Command:
    """The command of a call. Raises InputError with every unknown flag and every value that does not fit."""
    own = call.name in OWN_FLAGS
    tokens, problems = (list(call.tokens), []) if own else gathered(call.tokens)
    while True:
        try:
            function, bound, _ = app().parse_args(tokens, print_error=False, exit_on_error=False)
        except CycloptsError as error:
            problems.append(problem(error, tokens))
            left = without(error, tokens)
            if left is None:
                raise InputError(*problems) from None
            tokens = left
            continue
        if problems:
            raise InputError(*problems)
        ours = function.__module__.startswith("featherweight.")
        return Command(partial(function, *bound.args, **bound.kwargs), help=not ours)


def problem(error: CycloptsError, tokens: list[str]) -> Problem:
    """One of cyclopts' errors in this project's words."""
    if isinstance(error, UnknownCommandError):
        word = tokens[0]
        return Problem("unknown flag" if word.startswith("-") else "unknown command", word,
                       fix=did_you_mean(word, [*COMMANDS, "--help", "--version"]))  # fmt: skip
    if isinstance(error, UnknownOptionError):
        word = error.token.keyword or error.token.value
        return Problem("unknown flag", word.split("=")[0], fix=did_you_mean(spelt(word), flags(error)))
    if isinstance(error, CoercionError) and error.token is not None:
        kind = getattr(error.target_type, "__name__", str(error.target_type))
        return Problem("wrong value", str(error.token.keyword), expected=kind, got=repr(error.token.value))
    if isinstance(error, MissingArgumentError):
        return Problem("a value is missing", (getattr(error.argument, "name", "") or str(error)))
    if isinstance(error, UnusedCliTokensError):
        return Problem("too many words", tokens[0], got=" ".join(map(repr, error.unused_tokens or ())))
    return Problem(str(error), tokens[0] if tokens else "fw")


def without(error: CycloptsError, tokens: list[str]) -> list[str] | None:
    """The tokens without those that caused the error, to go on looking; None where nothing can be taken away."""
    if isinstance(error, UnknownOptionError):
        return cut(tokens, error.token.keyword or error.token.value)
    if isinstance(error, CoercionError) and error.token is not None and error.token.keyword:
        return cut(tokens, error.token.keyword)
    return None


def cut(tokens: list[str], flag: str) -> list[str] | None:
    """Take away a flag, joined to its value by = or followed by it."""
    bare = flag.split("=")[0]
    place = next((i for i, t in enumerate(tokens) if t.split("=")[0] == bare), None)
    if place is None:
        return None
    follows = place + 1 < len(tokens) and "=" not in tokens[place] and not tokens[place + 1].startswith("--")
    return tokens[:place] + tokens[place + (2 if follows else 1) :]


def spelt(word: str) -> str:
    return word.split("=")[0].replace("_", "-")


def flags(error: UnknownOptionError) -> Iterator[str]:
    """Every spelling that the command would have taken."""
    for argument in error.argument_collection:
        yield from (name for name in argument.names if name.startswith("--"))
    yield from ("--json", "--debug", "--help")
