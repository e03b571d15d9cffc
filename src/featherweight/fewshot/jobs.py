"""What a suite will do, read and checked as a whole before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all
from featherweight.data.load import collect
from featherweight.data.prompt_sets import Prompts, prompts
from featherweight.data.raft import TASK, numbers_beside
from featherweight.data.read import read
from featherweight.fewshot.submit import Unlabelled, checked, unlabelled
from featherweight.fewshot.suite import Part, Suite, sampled, verified


@dataclass(frozen=True, eq=False)
class Job:
    """One task: its parts by seed, its templates, and the rows without labels that are to be answered."""

    name: str
    template: str
    prompts: Prompts
    seeds: Mapping[int, Sequence[Part]]
    unlabelled: Unlabelled | None = None


def suite_of(given: Suite | str) -> Suite:
    """The suite of that name, or itself. Raises InputError with a did-you-mean."""
    if isinstance(given, Suite):
        return given
    made: Any = Suite.known.get(given.lower())
    if made is None:
        raise InputError(
            Problem("unknown suite", "suite", got=repr(given), fix=did_you_mean(given.lower(), Suite.known))
        )
    found: Suite = made()
    return found


def prepared(suite: Suite, home: Path, seeds: Sequence[int], tasks: Sequence[str], rows: int | None,
             submit: str | None) -> list[Job]:  # fmt: skip
    """Every task with all its rows, read and worded once. Raises InputError over all that is wrong with any of them."""
    problems: list[Problem] = []
    places = suite.chosen(home, tasks)
    jobs = [job(suite, name, place, seeds, rows, problems) for name, place in places.items()]
    if submit is not None:
        given = [unlabelled(place, submit, len(places), problems) for place in places.values()]
        jobs = [replace(one, unlabelled=bare) for one, bare in zip(jobs, given, strict=True)]
        for one in jobs:
            checked(one.unlabelled, one.prompts, problems)
    raise_all(dict.fromkeys(problems))
    return jobs


def job(suite: Suite, name: str, place: Path, seeds: Sequence[int], rows: int | None, problems: list[Problem]) -> Job:
    """One task. Its files are read and worded each by itself: what is wrong with one hides nothing of the others."""
    template = suite.templates[name]
    own = prompts(template)
    own = replace(own, numbers=own.numbers or numbers_beside(place / TASK))
    held = {path: found for path in suite.files(place) if (found := collect(problems, read, path)) is not None}
    for some in held.values():
        verified(some, own, problems)
    whole = len(held) == len(suite.files(place))
    parts = {seed: collect(problems, suite.parts, held, place, seed) or [] for seed in seeds} if whole else {}
    return Job(name, template, own, {seed: [sampled(part, rows) for part in found] for seed, found in parts.items()})
