"""FewGLUE: 32 training rows of each of six SuperGLUE tasks, scored on SuperGLUE's whole validation sets.

Source: Schick and Schütze 2021, "It's not just size that matters", arXiv:2009.07118. The 32 development rows of later
editions are left alone: nothing is tuned on them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from featherweight.data.types import Rows
from featherweight.fewshot.suite import Part, Suite


@dataclass(frozen=True, repr=False)
class FewGLUE(Suite):
    """`<Task>/train.jsonl` and `<Task>/val.jsonl`."""

    about: ClassVar[str] = "6 tasks of 32 rows, scored on SuperGLUE's validation sets"
    templates: ClassVar[Mapping[str, str]] = {t: t for t in ("boolq", "cb", "copa", "rte", "wic", "wsc")}
    folders: ClassVar[Mapping[str, str]] = {
        "boolq": "BoolQ", "cb": "CB", "copa": "COPA", "rte": "RTE", "wic": "WiC", "wsc": "WSC",
    }  # fmt: skip

    def files(self, folder: Path) -> tuple[Path, ...]:
        return folder / "train.jsonl", folder / "val.jsonl"

    def parts(self, held: Mapping[Path, Rows], folder: Path, seed: int) -> list[Part]:
        train, test = self.files(folder)
        return [Part("", held[train], held[test], str(train))]
