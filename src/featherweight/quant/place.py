"""Where codes may go: a module's weight (out, in), or one of the 3-d weights (experts, out, in) of a module of experts.

self_attn.q_proj             ->  self_attn.q_proj.codes, ...
mlp.experts.gate_up_proj     ->  mlp.experts.coded.gate_up_proj.codes, ...
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featherweight.core import lexicon
from featherweight.core.host import base_modules
from featherweight.core.part import Part
from featherweight.core.stack import flipped, stacked
from featherweight.quant.each import Each, codec
from featherweight.quant.experts import HOLDER
from featherweight.quant.quantized import become_quantized
from featherweight.quant.scheme import Packed, Scheme


@dataclass(frozen=True, eq=False)
class Place:
    """A weight to quantize. `block` is the number of its block (the encoder's before the decoder's), None outside;
    `name` is set for a module of experts, and then ends the path.
    """

    path: str
    module: Any
    role: str
    block: int | None
    name: str | None = None

    @property
    def key(self) -> str:
        """The name of the tensor."""
        return f"{self.path}.weight" if self.name is None else self.path

    @property
    def own(self) -> Tensor:
        """The tensor as the module keeps it."""
        tensor: Tensor = self.module._parameters[self.name or "weight"]
        return tensor

    @property
    def flip(self) -> bool:
        """Whether the module keeps its matrices as (in, out)."""
        return Part(self.module).flip if self.name is None else flipped(self.module)

    @property
    def weight(self) -> Tensor:
        """The tensor as (out, in) or (experts, out, in)."""
        return self.own.mT if self.flip else self.own

    def codec(self, scheme: Scheme) -> Scheme | Each:
        return codec(scheme, tuple(self.own.shape))

    def put(self, scheme: Scheme, packed: Packed, dtype: Any = None) -> Any:
        """Codes in place of the weight; gives the module that holds them."""
        return become_quantized(self.module, scheme, packed, dtype, self.name or "weight")


def stacks(model: nn.Module, blocks: list[tuple[str, int]]) -> Iterator[Place]:
    """The 3-d weights of experts that are not codes yet; `blocks` are prefixes of paths and numbers."""
    for path, module in base_modules(model):
        block = next((i for prefix, i in blocks if path.startswith(prefix)), None)
        for name in stacked(module):
            if name in module._parameters:
                yield Place(f"{path}.{name}".lstrip("."), module, role_of(name), block, name)


def role_of(name: str) -> str:
    """The role that a 3-d weight's name says, `experts` where it says none."""
    if name in lexicon.FUSED:
        return "+".join(lexicon.FUSED[name][0])
    kinds = (("gate", lexicon.GATE), ("up", lexicon.UP), ("down", lexicon.DOWN))
    return next((role for role, names in kinds if name in names), "experts")


def many(place: Place) -> bool:
    """Whether it looks like several matrices rather than a matrix with something beside it, by its shape."""
    count, *matrix = place.own.shape
    return count <= min(matrix)


def holder(path: str) -> str:
    """The path of a 3-d weight's tensor -> that of the module that holds its codes."""
    parent, _, name = path.rpartition(".")
    return f"{parent}.{HOLDER}.{name}".lstrip(".")


def tensor(path: str) -> str:
    """The inverse; other paths as they are."""
    parent, _, name = path.rpartition(".")
    stem, _, last = parent.rpartition(".")
    return f"{stem}.{name}".lstrip(".") if last == HOLDER else path


def slots(model: nn.Module) -> dict[str, tuple[Any, str | None]]:
    """path of what holds codes, or would -> its module, and the name of a 3-d weight in it."""
    found: dict[str, tuple[Any, str | None]] = {path: (m, None) for path, m in base_modules(model)}
    for path, module in base_modules(model):
        found |= {holder(f"{path}.{name}"): (module, name) for name in stacked(module) if name in module._parameters}
    return found
