"""The compiled library: found, loaded on first use, its instruction level picked at run time.

`available()` says whether and why. FEATHERWEIGHT_NATIVE=scalar|avx2|avx512 asks for one level, `off` for plain torch.
Work runs on torch's own threads: the address of its OpenMP runtime's fork goes to the library, which has none itself.
"""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from featherweight.core.errors import InputError, Problem, did_you_mean, listed

PATH = Path(__file__).with_name("_native.so")
ABI = 5  # as in csrc/api.cpp
LEVELS = ("scalar", "avx2", "avx512")
P, I, N, F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
# fmt: off
SIGNATURES = {  # pointers; types and threads; sizes: as in csrc/api.cpp
    "encode4": (P, I, P, P, P, N, N, I),
    "decode4": (P, P, P, P, I, N, N, I),
    "decode8": (P, P, P, I, N, N, I),
    "decode_scales": (P, P, P, P, P, N, N, I),
    "quantize_rows": (P, I, P, P, P, N, N, I),
    "rescale": (P, P, P, P, P, I, N, N, I),
    "linear": (P, P, F, P, I, P, I, P, N, I),
    "norm": (P, I, P, P, F, N, N),
    "rotate": (P, P, I, P, P, P, P, N, N, N, N, N),
    "bank": (P, I, P, P, P, P, P, N, N, N, N, N, I),
    "attend": (P, P, P, I, P, N, P, F, N, N, N, N, N, I),
}
# fmt: on


class Weight(ctypes.Structure):
    """A weight of a product, as in csrc/kernels.h; what is not given is null."""

    _fields_: ClassVar[Any] = [
        *((name, P) for name in ("codes", "scale", "table", "scales", "scale_table", "scale_absmax", "scale_offset")),
        *((name, N) for name in ("n", "k", "block", "scale_block")),
    ]


class Factors(ctypes.Structure):
    """A and B of a low-rank term, as in csrc/kernels.h."""

    _fields_: ClassVar[Any] = [("A", P), ("B", P), ("rank", N), ("A_type", I), ("B_type", I)]


class Native(NamedTuple):
    """What is to be had: the level in use and its functions, or no level and why."""

    level: str | None
    reason: str
    functions: dict[str, Any]
    threads: bool = False  # whether work is shared between torch's threads


def available() -> tuple[bool, str]:
    """(whether native kernels compute, the level in use or what is missing)."""
    found = load()
    return found.level is not None, found.reason


@cache
def load() -> Native:
    """The library at the level that FEATHERWEIGHT_NATIVE asks for, or the best this processor runs."""
    asked = os.environ.get("FEATHERWEIGHT_NATIVE", "").lower()
    if asked and asked not in (*LEVELS, "off"):
        expected = f"off, {listed(LEVELS)}{did_you_mean(asked, LEVELS)}"
        raise InputError(Problem("no such level", "FEATHERWEIGHT_NATIVE", expected=expected, got=asked))
    if asked == "off":
        return Native(None, "switched off by FEATHERWEIGHT_NATIVE=off", {})
    if not PATH.exists():
        fix = "install a C++ compiler (g++ or clang++), then featherweight again"
        return Native(None, f"not built: no C++ compiler was there at installation; {fix}", {})
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        return Native(None, f"cannot be loaded: {error}", {})
    if not hasattr(library, "fw_abi") or library.fw_abi() != ABI:
        return Native(None, "built from other sources: install featherweight again", {})
    return start(library, asked)


def start(library: Any, asked: str) -> Native:
    """Set the level and the thread pool, and type the functions."""
    import torch  # noqa: F401  # loads the OpenMP runtime that `fork` finds

    here = [level for i, level in enumerate(LEVELS) if library.fw_levels() >> i & 1]
    if asked and asked not in here:
        raise InputError(
            Problem("this processor or build has no such level", "FEATHERWEIGHT_NATIVE", listed(here), asked)
        )
    level, pool = asked or here[-1], fork()
    library.fw_start.argtypes = (I, P)
    library.fw_start(LEVELS.index(level), pool)
    functions = {}
    for name, types in SIGNATURES.items():
        functions[name] = getattr(library, f"fw_{name}")
        functions[name].argtypes, functions[name].restype = types, None
    threads = "torch's threads" if pool else "one thread: torch's OpenMP runtime has no GOMP_parallel"
    return Native(level, f"{level} on {platform.machine()}, {threads}", functions, bool(pool))


def fork() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch loaded for everyone, None where it has none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, P).value
    except (AttributeError, OSError, TypeError):  # another OpenMP, or a platform without a global namespace
        return None
