"""Is a student better with a teacher than alone? Three layers of six (MiniLM) and of five (stories260k).

    python benchmarks/distill.py                   every run that is not in the JSON yet; stop it and go on at will
    python benchmarks/distill.py --only sst2       jobs whose name contains a word
    python benchmarks/distill.py --speed           sizes, and times of teacher and student in one run
    python benchmarks/distill.py --cache           a second epoch with and without the teacher's outputs kept

MiniLM fine-tuned on banking77 and on sst2, and stories260k as it is on TinyStories, teach their own first, middle and
last block: `fw.student(teacher, layers=3)`. Every arm starts there, trains all weights (of MiniLM all but embeddings)
on the same rows for the same number of steps (an arm of two stages has half of them for each), and has the same grid of
rates, of which the better on dev at seed 0 is kept; two more seeds follow. A seed draws its own rows. "labels, base's
blocks" is cut from the model that the teacher was before its fine-tuning.

Differences are to "labels" of the same seed and row; intervals are 95 % of a bootstrap over seeds and rows.
"""

import argparse
import json
import warnings
from typing import Any

import _paired
from _distill import ARMS, JOBS, Job, teacher_of, trained
from _outcomes import bits, outcomes, scores, summary

SEEDS = 3


def key(arm: str, rate: float, seed: int) -> str:
    return f"{arm}, lr {rate:g}, seed {seed}"


def kept(job: Job, arm: str, runs: dict[str, Any]) -> float | None:
    """The rate with the better dev score at seed 0, once all are known and one of them ran."""
    tried = {rate: runs.get(key(arm, rate, 0)) for rate in job.rates}
    if any(run is None for run in tried.values()):
        return None
    ran = {rate: run["dev"] for rate, run in tried.items() if run and "error" not in run}
    return max(ran, key=ran.__getitem__) if ran else None


def due(job: Job, runs: dict[str, Any]) -> list[tuple[str, float, int]]:
    """What is to be run next: all rates of all arms at seed 0, then seeds of those kept; the last arm after all."""
    wanted = []
    for arms in (ARMS[:-1], ARMS[-1:]) if job.base_too else (ARMS[:-1],):
        wanted += [(arm, rate, 0) for rate in job.rates for arm in arms]
        wanted += [(arm, rate, s) for s in range(1, SEEDS) for arm in arms if (rate := kept(job, arm, runs))]
    return [w for w in wanted if key(*w) not in runs]


def one(job: Job, arm: str, rate: float, seed: int, shown: dict[str, Any]) -> dict[str, Any]:
    """A student of one arm: what it took, and what it does on dev and test rows."""
    from featherweight.core.errors import InputError

    try:
        student, found = trained(job, arm, rate, seed)
    except InputError as error:  # a recipe that does not fit these two models is a finding
        return {"error": " ".join(str(error).split())}
    dev, _ = outcomes(student, job, "valid")
    test, said = outcomes(student, job, "test")
    agrees = sum(a == b for a, b in zip(said, shown["said"], strict=True)) / len(said)
    found |= {"dev": round(scores(job, dev, "valid"), 4), "test": round(scores(job, test, "test"), 4)}
    return found | {"agreement": round(agrees, 4), "rows": bits(job, test)}


def run(job: Job, jobs: dict[str, Any]) -> None:
    mine = jobs.setdefault(job.name, {"runs": {}})
    teacher = teacher_of(job)
    values, said = outcomes(teacher, job, "test")
    mine["settings"] = {"rates": job.rates, "steps": job.steps, "batch": job.batch, "lessons": job.lessons,
                        "rows": {name: len(rows) for name, rows in job.data.items()}}  # fmt: skip
    mine["teacher"] = {"test": round(scores(job, values, "test"), 4), "rows": bits(job, values)}
    before, _ = outcomes(job.student(teacher), job, "test")
    mine["untrained"] = round(scores(job, before, "test"), 4)
    print(job.name, "teacher", mine["teacher"]["test"], "student before training", mine["untrained"], flush=True)
    while todo := due(job, mine["runs"]):
        found = one(job, *todo[0], {"said": said})
        mine["runs"][key(*todo[0])] = found
        print(job.name, key(*todo[0]), {k: v for k, v in found.items() if k != "rows"}, flush=True)
        chosen = {arm: kept(job, arm, mine["runs"]) for arm in ARMS}
        by_seed = {arm: {s: r for s in range(SEEDS) if rate and (r := mine["runs"].get(key(arm, rate, s)))}
                   for arm, rate in chosen.items()}  # fmt: skip
        mine["summary"] = summary(job, mine["teacher"], by_seed, chosen)
        save(jobs=jobs)


def save(**parts: Any) -> None:
    """Into the JSON at once, beside what other modes wrote."""
    _paired.write("distill", _paired.load("distill") | {"machine": _paired.machine()} | parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--cache", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    if options.speed:
        from _distill_speed import speed

        found = speed(options.rounds)
        print(json.dumps(found, indent=1))
        save(speed=found)
        return
    if options.cache:
        from _distill_speed import cached_epochs

        found = cached_epochs(3)
        print(json.dumps(found, indent=1))
        save(cache=found)
        return
    for job in [j for j in JOBS if options.only in j.name]:
        run(job, _paired.load("distill").get("jobs", {}))


if __name__ == "__main__":
    main()
