"""T-Few's few-shot draws: twelve data sets, a file of training rows for each seed.

Held-out rows of some of them cannot be had, so that a seed is scored on the rows of the other seeds' files that are not
among its own. Source: github.com/r-three/t-few, data/few_shot; Liu et al. 2022, section 4.1.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from featherweight.core.errors import InputError, Problem, listed
from featherweight.data.types import Row, Rows
from featherweight.fewshot.suite import Part, Suite

DRAW = "_seed.jsonl"


@dataclass(frozen=True, repr=False)
class TFew(Suite):
    """`<set>/<k>_shot/<seed>_seed.jsonl`."""

    about: ClassVar[str] = "12 data sets of T-Few's draws, each seed scored on the other seeds' rows"
    templates: ClassVar[Mapping[str, str]] = {
        "anli-r1": "anli", "anli-r2": "anli", "anli-r3": "anli", "boolq": "boolq", "cb": "cb", "copa": "copa",
        "h-swag": "hellaswag", "rte": "rte", "sst2": "sst2", "wic": "wic", "winogrande": "winogrande", "wsc": "wsc",
    }  # fmt: skip

    def files(self, folder: Path) -> tuple[Path, ...]:
        return tuple(sorted(folder.glob(f"*_shot/*{DRAW}")))

    def parts(self, held: Mapping[Path, Rows], folder: Path, seed: int) -> list[Part]:
        draws = {path.name.removesuffix(DRAW): path for path in self.files(folder)}
        own = draws.get(str(seed))
        if own is None:
            there = f"one of {listed(sorted(draws, key=int))}"
            raise InputError(Problem("no draw of this seed", str(folder), there, str(seed)))
        known = {key(row) for row in held[own]}
        others = {key(row): row for path in draws.values() if path != own for row in held[path]}
        return [Part("", held[own], Rows([row for name, row in others.items() if name not in known]), str(own))]


def key(row: Row) -> str:
    """What makes two rows one: everything but their numbers."""
    fields: dict[str, Any] = {k: v for k, v in row.fields.items() if k not in ("idx", "ind", "uid")}
    return json.dumps(fields, sort_keys=True)
