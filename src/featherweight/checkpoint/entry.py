"""One tensor of a file and the tensors of a model that it stands for: the same table serves writing and reading."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from featherweight.core.errors import Problem, raise_all

Shape = tuple[int, ...]
ANY = (-1,)  # the shape of a 1-d tensor whose length the file decides


class Entry(NamedTuple):
    """`key` in the file, of `shape`, holds the model's tensors `parts`; `pack` and `unpack` go between, exactly."""

    key: str
    shape: Shape
    parts: tuple[str, ...]
    pack: Callable[[Sequence[Tensor]], Tensor]
    unpack: Callable[[Tensor], Sequence[Tensor]]


def same(key: str, part: str, shape: Shape, file_shape: Shape | None = None) -> Entry:
    """A tensor that is stored as it is, at most under another shape of equal size."""
    if file_shape is None:
        return Entry(key, shape, (part,), itemgetter(0), alone)
    return Entry(
        key, file_shape, (part,), lambda given: given[0].reshape(file_shape), lambda kept: [kept.reshape(shape)]
    )


def alone(kept: Tensor) -> Sequence[Tensor]:
    return (kept,)


def stacked(key: str, parts: Sequence[str], shapes: Sequence[Shape]) -> Entry:
    """Tensors one below the other: (r₁, in), (r₂, in) -> (r₁+r₂, in)."""
    sizes = [s[0] for s in shapes]
    return Entry(
        key,
        (sum(sizes), *shapes[0][1:]),
        tuple(parts),
        lambda given: torch.cat(list(given)),
        lambda kept: kept.split(sizes),
    )


def packed(entries: Iterable[Entry], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors from the model's."""
    return {e.key: e.pack([tensors[p].detach() for p in e.parts]) for e in entries}


def unpacked(entries: Sequence[Entry], tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The model's tensors from the file's.

    Raises one InputError over all missing, extra and misshapen tensors; a missing and an extra one that look alike are
    reported as one misspelt name.
    """
    raise_all(unbound({e.key: e.shape for e in entries}, tensors, where))
    found: dict[str, Tensor] = {}
    problems = []
    for entry in entries:
        kept = tensors[entry.key]
        parts = list(entry.unpack(kept))
        if len(parts) > 1 and not torch.allclose(entry.pack(parts).to(kept.dtype), kept, rtol=1e-6, atol=0):
            problems.append(Problem("values outside the slices that the method has", f"{where}:{entry.key}"))
        found |= dict(zip(entry.parts, parts, strict=True))
    raise_all(problems)
    return found


def unbound(wanted: Mapping[str, Shape], given: Mapping[str, Tensor], where: str) -> list[Problem]:
    """Every tensor that has no counterpart of the same shape on the other side."""
    missing = [k for k in wanted if k not in given]
    extra = [k for k in given if k not in wanted]
    found = []
    for key in extra:
        near = alike(key, tuple(given[key].shape), missing, wanted)
        if near:
            missing.remove(near)
            found.append(Problem("misspelt tensor", f"{where}:{key}", fix=f"rename it to {near}"))
        else:
            fix = "the model has nothing of this name: was it saved from another base or with other targets?"
            found.append(Problem("extra tensor", f"{where}:{key}", got=sizes(given[key].shape), fix=fix))
    found += [Problem("missing tensor", f"{where}:{key}", expected=sizes(wanted[key])) for key in missing]
    found += [
        Problem("misshapen tensor", f"{where}:{key}", sizes(wanted[key]), sizes(given[key].shape))
        for key in wanted
        if key in given and not fits(tuple(given[key].shape), tuple(wanted[key]))
    ]
    return found


def alike(key: str, shape: Shape, missing: Sequence[str], wanted: Mapping[str, Shape]) -> str | None:
    """The missing name that `key` is a misspelling of: near in letters, and of the same shape."""
    fitting = [m for m in missing if fits(shape, tuple(wanted[m]))]
    near = get_close_matches(key, fitting, n=1, cutoff=0.75)
    return near[0] if near else None


def fits(shape: Shape, wanted: Shape) -> bool:
    return shape == wanted or (wanted == ANY and len(shape) == 1)


def sizes(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
