"""What a suite will do, read and checked as a whole before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all
from featherweight.data.load import collect
from featherweight.data.prompt_sets import Prompts, prompts
from featherweight.data.raft import TASK, numbers_beside
from featherweight.fewshot.submit import Unlabelled, checked, unlabelled
from featherweight.fewshot.suite import Part, Suite, sampled, verified


@dataclass(frozen=True, eq=False)
class Job:
    """One task: its parts by seed, its templates, and the rows without labels that are to be answered."""

    name: str
    template: str
    prompts: Prompts
    seeds: Mapping[int, Sequence[Part]]
    unlabelled: Unlabelled | None


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
    jobs = []
    places = suite.chosen(home, tasks)
    for name, place in places.items():
        template = suite.templates[name]
        parts = {seed: collect(problems, suite.parts, place, seed) or [] for seed in seeds}
        held = [part for found in parts.values() for part in found]
        bare = unlabelled(place, submit, len(places), problems) if submit is not None else None
        own = prompts(template)
        own = replace(own, numbers=own.numbers or numbers_beside(place / TASK))
        verified({tuple(r.where for r in some): some for part in held for some in (part.train, part.test)}.values(),
                 own, problems)  # fmt: skip
        if bare is not None:
            checked(bare, own, problems)
        cut = {seed: [sampled(part, rows) for part in found] for seed, found in parts.items()}
        jobs.append(Job(name, template, own, cut, bare))
    raise_all(dict.fromkeys(problems))
    return jobs
