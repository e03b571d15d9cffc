"""One decoded weight at a time lives in a buffer that stays: fresh memory of a weight's size costs more than decoding.

    with scratch():
        y = F.linear(x, scheme.decode(packed, shape, dtype))

The first tensor of a size worth it that a native operation makes inside is cut from the thread's buffer; it must not
outlive the block. Inside another such block of its thread, where autograd may keep what is computed and in a compiled
graph, memory is the allocator's, as everywhere else.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

SMALL = 1 << 15  # bytes below which the allocator is as good


class Lender(threading.local):
    """A thread's buffer, the views cut from it by (shape, dtype), and whether it is to be had."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.views: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = {}
        self.open = False
        self.depth = 0

    def view(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        found = self.views.get((shape, dtype))
        if found is None:
            size = prod(shape) * dtype.itemsize
            if size > self.buffer.numel():
                self.views.clear()
                self.buffer = torch.empty(0, dtype=torch.uint8)  # the old one goes first
                with torch.inference_mode(False):  # it will serve outside of that mode too
                    self.buffer = torch.empty(size, dtype=torch.uint8)
            found = self.views[shape, dtype] = self.buffer[:size].view(dtype).view(shape)
        return found


lender = Lender()


@contextmanager
def scratch() -> Iterator[None]:
    """Inside, the next large tensor of a native operation is cut from this thread's buffer."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or lender.depth:
        yield
        return
    lender.open, lender.depth = True, 1
    try:
        yield
    finally:
        lender.open, lender.depth = False, 0


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of the CPU to be filled: the buffer's where it is to be had."""
    shape = tuple(shape)
    if not lender.open or prod(shape) * dtype.itemsize < SMALL:
        return torch.empty(shape, dtype=dtype)
    lender.open = False
    return lender.view(shape, dtype)


def release() -> None:
    """Give this thread's buffer back."""
    lender.views.clear()
    lender.buffer = torch.empty(0, dtype=torch.uint8)
