"""What a block is worth: the loss on given rows of the model without it.

    I_i = L(model without block i)       blocks with the largest I are kept first

Drop-one losses look at each block alone: of two blocks that stand in for each other both may seem to matter little.
The rows decide, so they must not be those of a test.
Source: Michel et al. 2019, arXiv:1905.10650, who leave out heads so; Sajjad et al. 2020, arXiv:2004.03844, for layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from featherweight.data.load import Data, load
from featherweight.evaluate import evaluate
from featherweight.tasks import Task


def importance(teacher: Any, data: Any, task: Task | None = None, **options: Any) -> dict[str, tuple[float, ...]]:
    """The loss (of the task, on the valid split of `data`, else its train split) without each block of each stack:
    {"bert.encoder.layer": (0.61, 0.58, …)}. `options` go to `fw.evaluate`. One copy of the model is made at a time.
    """
    from featherweight.distill.student import side, stacks_of, student

    loaded = data if isinstance(data, Data) else load(data)
    stacks = stacks_of(teacher)
    found: dict[str, tuple[float, ...]] = {}
    for path, blocks in stacks.items():
        losses = []
        for gone in range(blocks) if blocks > 1 else ():
            rest = [i for i in range(blocks) if i != gone]
            without = student(teacher, {side(path, stacks) or "layers": rest})
            scores = evaluate(without, loaded, task, split="valid" if loaded.valid else "train", **options)
            losses.append(scores["loss"])
        found[path] = tuple(losses) or (0.0,)
    return found


def ranked(losses: Mapping[str, Sequence[float]]) -> dict[str, list[int]]:
    """The blocks of each stack, those that matter most first; of equals the earlier."""
    return {path: sorted(range(len(own)), key=lambda i: -own[i]) for path, own in losses.items()}
