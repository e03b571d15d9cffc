"""Whether a parameter is what it was: its version and memory, and a few of its values.

Those few are looked at as well because writes through `.data`, as a merge makes them, do not count as a version, and
because memory that was let go is soon another tensor's.
"""

from typing import NamedTuple

from torch import Tensor, nn

FEW = 4


class Look(NamedTuple):
    """Of one tensor at one time; equal looks, the same values."""

    version: int
    place: int
    shape: tuple[int, ...]
    dtype: str
    values: tuple[float, ...]


def looks(*tensors: Tensor) -> tuple[Look, ...] | None:
    """A look at each tensor; None where one of them is no parameter (or rows of one) on the CPU: it may be made anew
    at every call, or looking would make a device wait.
    """
    found = []
    for tensor in tensors:
        owner = tensor if tensor._base is None else tensor._base
        if type(owner) is not nn.Parameter or not tensor.is_cpu or tensor.is_inference() or not tensor.numel():
            return None
        shape = tuple(tensor.shape)
        found.append(Look(tensor._version, tensor.data_ptr(), shape, str(tensor.dtype), glimpse(tensor)))
    return tuple(found)


def glimpse(tensor: Tensor) -> tuple[float, ...]:
    """FEW values, evenly spread from the first towards the last, in three calls of torch."""
    step = sum([(n - 1) // (FEW - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)])
    return tuple(tensor.detach().as_strided((FEW,), (step,), tensor.storage_offset()).tolist())
