"""Fused kernels, looked up when called: a function that serves one adapter type on one host type in one pass.

A kernel serves the bottom of a stack only and is found by the exact types, so a subclass of either is never hijacked.
It is looked up at the call because a host may be quantized after it was attached.
"""

from collections.abc import Callable
from typing import Any

Kernel = Callable[..., Any]
kernels: dict[tuple[type, type], Kernel] = {}
banks: dict[tuple[type, type], Kernel] = {}  # fn(host, plan, *args, **kwargs): many adapters of one type, by row


def register(adapter: type, host: type) -> Callable[[Kernel], Kernel]:
    """Decorator: `fn(adapter, host, *args, **kwargs)` serves `adapter` on a host whose frozen class is `host`."""

    def keep(kernel: Kernel) -> Kernel:
        kernels[adapter, host] = kernel
        return kernel

    return keep
