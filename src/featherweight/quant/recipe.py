"""A scheme and where it goes: what a run's file, an adapter and `load_base(quantize=)` say of a quantized base.

{"type": "nf4", "double": true, "skip": ["down"]}       the scheme's fields, and `targets` and `skip` beside them
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from featherweight.core.anatomy import anatomy
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.noun import plain
from featherweight.core.targets import Targets
from featherweight.quant.experts import Stack
from featherweight.quant.place import many, stacks, tensor
from featherweight.quant.quantized import Quantized
from featherweight.quant.scheme import Scheme

EVERY = "linear"  # the linear layers of the blocks


@dataclass(frozen=True)
class Recipe:
    """`targets` and `skip` as for `quantize`."""

    scheme: Scheme
    targets: Targets = EVERY
    skip: Targets = ()

    def to_dict(self) -> dict[str, Any]:
        more = {"targets": self.targets} if self.targets != EVERY else {}
        more |= {"skip": self.skip} if self.skip else {}
        return self.scheme.to_dict() | {k: plain(k, v) for k, v in more.items()}

    @classmethod
    def of(cls, given: Any, where: str = "quantize") -> "tuple[Recipe, ...]":
        """Recipes from a scheme, its file form, a list of those, "none" or None. Raises InputError for the rest."""
        if given is None or given == "none":
            return ()
        if isinstance(given, list | tuple):
            return tuple(recipe for one in given for recipe in cls.of(one, where))
        if isinstance(given, cls):
            return (given,)
        if isinstance(given, Scheme):
            return (cls(given),)
        if isinstance(given, str):
            given = {"type": given}
        if not isinstance(given, Mapping):
            expected = "a scheme such as fw.NF4(), its name, its fields, or none"
            raise InputError(Problem("not a number format", where, expected, repr(given)))
        form = dict(given)
        targets, skip = form.pop("targets", EVERY), form.pop("skip", ())
        return (cls(Scheme.from_dict(form, where), frozen(targets), frozen(skip)),)


def frozen(entries: Any) -> Any:
    return tuple(entries) if isinstance(entries, list) else entries


def recipes(model: nn.Module) -> tuple[Recipe, ...]:
    """The recipes that make a model's like from its float checkpoint; none where nothing in it is quantized."""
    held = {tensor(path): m.scheme for path, m in base_modules(model) if isinstance(m, Quantized)}
    if not held:
        return ()
    there = anatomy(model)
    every = {site.path for site in there.roles.get(EVERY, [])}
    blocks = [(f"{path}.", i) for i, (path, _) in enumerate(there.blocks)]
    if all(scheme.stacks for scheme in held.values()):
        every |= {place.path for place in stacks(model, blocks) if place.block is not None and many(place)}
        every |= {tensor(path) for path, m in base_modules(model) if isinstance(m, Stack)}
    kinds = dict.fromkeys(held.values())
    if len(kinds) == 1 and every == set(held):
        return (Recipe(next(iter(kinds))),)
    return tuple(Recipe(scheme, tuple(p for p, s in held.items() if s == scheme)) for scheme in kinds)
