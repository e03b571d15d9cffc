"""Chance as a pure function of integers: what a run draws depends on (seed, step, rank, purpose) and on nothing before.

Resuming therefore needs no generator state, only the step: noise is reseeded before every micro-step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one purpose: equal arguments give equal seeds, on every machine and in every version."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def reseed(seed: int, *parts: int | str) -> None:
    """Seed torch's generators (CPU and every accelerator) from `derive(seed, *parts)`."""
    import torch

    torch.manual_seed(derive(seed, *parts))  # covers CUDA and MPS too


@contextmanager
def own_generators(device: "torch.device") -> Iterator[None]:
    """The caller's generator state is as before once the run is over."""
    import torch

    accelerators = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(accelerators, device_type=device.type if accelerators else "cuda"):
        yield
