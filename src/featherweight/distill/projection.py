"""Learned projections between a narrow student and its teacher: H_s W_h, W_h (d_s, d_t), compared with H_t.

They train with the student, are in the checkpoints that resume its run, and are gone when it is over: as an adapter
that changes nothing sits on the student's embeddings, they go the way of everything that trains, and `fw.distill` takes
them off. One for each compared state, as in TinyBERT's second version; rows of W_h start orthonormal, so that lengths
stay.
Source: Jiao et al. 2019 (TinyBERT), equations 8 and 9, arXiv:1909.10351.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core import state
from featherweight.core.adapter import Adapter
from featherweight.core.anatomy import anatomy
from featherweight.core.errors import InputError, Problem
from featherweight.core.method import Method
from featherweight.core.site import Site
from featherweight.core.switch import switch_of

NAME = "projections"  # under which they are attached to the student


class Projected(Adapter):
    """Passes its host's output on; `W_<number>` (d_s, d_t) for each compared state."""

    def __init__(self, numbers: Sequence[int], student: int, teacher: int, like: Tensor):
        super().__init__()
        for number in numbers:
            W = nn.init.orthogonal_(torch.empty(student, teacher)).to(like.device)
            self.register_parameter(f"W_{number}", nn.Parameter(W))

    def forward(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        return base(*args, **kwargs)

    def merge(self, W: Any) -> dict[str, Tensor]:
        return {}

    def lift(self, number: int, states: Tensor) -> Tensor:
        """(b, s, d_s) -> (b, s, d_t), in fp32."""
        return states.float() @ getattr(self, f"W_{number}")


@dataclass(frozen=True, repr=False)
class Projections(Method):
    """`numbers` of the student's states, its width and the teacher's."""

    numbers: tuple[int, ...] = ()
    student: int = 1
    teacher: int = 1

    lasting: ClassVar[bool] = False
    place: ClassVar[str] = "beside the student's embeddings"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        found = anatomy(model).sites("embedding")[:1]
        if not found:
            raise InputError(Problem("the student has no embedding of tokens to put projections on", "student"))
        return [Site(s.path, s.module) for s in found]

    def build(self, site: Site, shared: Any) -> Adapter:
        return Projected(self.numbers, self.student, self.teacher, next(site.module.parameters()))


del Method.known["projections"]  # scaffolding of one run: nobody attaches or loads it


def lifting(student: nn.Module) -> Callable[[int, Tensor], Tensor]:
    """What brings a student's states to its teacher's width: its projections, where it has any."""
    if NAME not in switch_of(student).attached:
        return lambda number, states: states
    (adapter,) = state.adapters(student, NAME).values()
    assert isinstance(adapter, Projected)
    return adapter.lift
