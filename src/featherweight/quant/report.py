"""What quantizing did to a model: per layer how far the weights moved, how well the codes are used, and the bytes.

SQNR     10 log10 (Σ w² / Σ (w - ŵ)²), in dB
error    ‖W - Ŵ‖ / ‖W‖                            output   ‖XWᵀ - XŴᵀ‖ / ‖XWᵀ‖ over calibration batches
entropy  -Σ p log2 p bits of the codes' shares p  collisions  Σ p²: the chance that two weights share a code
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import prod
from typing import Any

import torch
from torch import Tensor

from featherweight.quant import packing
from featherweight.quant.each import one
from featherweight.quant.place import Place
from featherweight.quant.scheme import Scheme
from featherweight.quant.skip import Skipped, grouped


@dataclass(frozen=True)
class Usage:
    """How the codes of a tensor are used: `counts` by code."""

    counts: tuple[int, ...]

    @property
    def entropy(self) -> float:
        """Bits a code carries."""
        return -sum(p * math.log2(p) for p in self.shares if p)

    @property
    def collisions(self) -> float:
        """The chance that two weights drawn at random have the same code: 1/16 where 16 codes are used alike."""
        return sum(p * p for p in self.shares)

    @property
    def unused(self) -> int:
        return sum(count == 0 for count in self.counts)

    @property
    def shares(self) -> list[float]:
        total = sum(self.counts)
        return [count / total for count in self.counts]


@dataclass(frozen=True)
class Layer:
    """One quantized module. `signal` is Σ w², `noise` Σ (w - ŵ)²; `usage` is None where the packing is not known."""

    path: str
    role: str
    block: int | None
    shape: tuple[int, ...]
    before: int  # bytes
    after: int
    signal: float
    noise: float
    usage: Usage | None = None
    output: float | None = None

    @property
    def sqnr(self) -> float:
        return decibels(self.signal, self.noise)

    @property
    def error(self) -> float:
        return math.sqrt(self.noise / self.signal) if self.signal else 0.0

    @property
    def bits(self) -> float:
        """Stored bits per weight, scales included."""
        return 8 * self.after / prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "module": self.path, "role": self.role, "block": self.block, "shape": list(self.shape),
            "sqnr": self.sqnr, "error": self.error, "output_error": self.output, "bits": self.bits,
            "entropy": usage and usage.entropy, "collisions": usage and usage.collisions,
            "unused_codes": usage and usage.unused, "bytes_before": self.before, "bytes_after": self.after,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Report:
    """`layers` and `skipped` in the model's order; `rest` is the bytes of all other tensors."""

    scheme: Scheme
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...] = ()
    rest: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def before(self) -> int:
        """Bytes of the model before."""
        return self.rest + sum(layer.before for layer in self.layers)

    @property
    def after(self) -> int:
        """Bytes of the model now."""
        return self.rest + sum(layer.after for layer in self.layers)

    @property
    def bits(self) -> float:
        """Stored bits per quantized weight."""
        return 8 * sum(layer.after for layer in self.layers) / sum(prod(layer.shape) for layer in self.layers)

    @property
    def sqnr(self) -> float:
        """Of all quantized weights together, in dB."""
        return decibels(sum(layer.signal for layer in self.layers), sum(layer.noise for layer in self.layers))

    @property
    def worst(self) -> Layer:
        return min(self.layers, key=lambda layer: layer.sqnr)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "scheme": self.scheme.to_dict(), "sqnr": self.sqnr, "bits": self.bits, "bytes_before": self.before,
            "bytes_after": self.after, "layers": [layer.to_dict() for layer in self.layers],
            "skipped": [{"module": s.path, "reason": s.reason, "parameters": s.parameters} for s in self.skipped],
            "notes": list(self.notes),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The totals in words."""
        kept = [f"{reason} ({count} module{'s' * (count != 1)}, {n:,} parameters)"
                for reason, count, n in grouped(self.skipped)]  # fmt: skip
        outputs = [layer.output for layer in self.layers if layer.output is not None]
        found = [
            f"{self.scheme!r}: {len(self.layers)} layers in {self.bits:.3f} bits a weight",
            f"model {size(self.before)} → {size(self.after)} ({self.after / max(self.before, 1):.1%})",
            f"SQNR {self.sqnr:.2f} dB; worst {self.worst.sqnr:.2f} dB: {self.worst.path}",
        ]
        found += [f"output error {sum(outputs) / len(outputs):.2%}; worst {max(outputs):.2%}"] if outputs else []
        return [*found, *([f"kept as it was: {'; '.join(kept)}"] if kept else []), *self.notes]

    def __repr__(self) -> str:
        return "\n".join(self.lines())


def measured(place: Place, W: Tensor, scheme: Scheme, packed: Mapping[str, Tensor], bytes_before: int) -> Layer:
    """Compare a weight (out, in), or a stack of those, with what its codes decode to."""
    shape = tuple(W.shape)
    if len(shape) == 3:
        parts = [measured(place, M.contiguous(), scheme, one(packed, e), 0) for e, M in enumerate(W)]
        return together(replace(parts[0], shape=shape, before=bytes_before), parts)
    error = scheme.decode(packed, shape, torch.float32)
    error -= W
    after = sum(t.numel() * t.element_size() for t in packed.values())
    signal, noise = squares(W), squares(error)
    used = usage(packed, shape, scheme.unpacked(packed, shape))
    return Layer(place.path, place.role, place.block, shape, bytes_before, after, signal, noise, used)


def together(first: Layer, parts: Sequence[Layer]) -> Layer:
    """The layer that several make, each of them one matrix of it."""
    after, signal, noise = (sum(getattr(p, n) for p in parts) for n in ("after", "signal", "noise"))
    counts = [p.usage.counts for p in parts if p.usage is not None]
    used = Usage(tuple(sum(column) for column in zip_longest(*counts, fillvalue=0))) if counts else None
    return replace(first, after=after, signal=signal, noise=noise, usage=used)


def squares(x: Tensor) -> float:
    """Σ x²."""
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float32)) ** 2


def usage(packed: Mapping[str, Tensor], shape: tuple[int, ...], unpacked: Tensor | None = None) -> Usage | None:
    """Counts by code where there are `codes` of 1 to 8 bits (`packing.py`); None for other layouts and floats."""
    codes, n = packed.get("codes"), prod(shape)
    if unpacked is not None:
        return Usage(tuple(torch.bincount(unpacked.reshape(-1)).tolist()))
    if codes is None or codes.dtype not in (torch.uint8, torch.int8):
        return None
    codes = codes.reshape(-1).view(torch.uint8)
    bits = next((k for k in (4, 8, 3, 2, 6, 5, 7, 1) if packing.size(n, k) == codes.numel()), 0)
    if bits == 4:
        return Usage(tuple(nibbles(codes, n).tolist()))
    return Usage(tuple(torch.bincount(packing.unpack(codes, bits, n), minlength=2**bits).tolist())) if bits else None


def nibbles(codes: Tensor, n: int) -> Tensor:
    """Counts of 4-bit codes out of counts of bytes."""
    pairs = torch.bincount(codes, minlength=256).view(16, 16)  # by high nibble, by low nibble
    counts = pairs.sum(1) + pairs.sum(0)
    if n % 2:
        counts[int(codes[-1]) & 15] -= 1  # the last low nibble is padding
    return counts


def decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def size(n: int) -> str:
    """Bytes as a person reads them: 1,234 B, 12.3 KB, 4.56 MB, 1.23 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if n >= factor:
            return f"{n / factor:.3g} {unit}" if n < 999.5 * factor else f"{n / factor:,.0f} {unit}"
    return f"{n:,} B"


def with_outputs(layers: Sequence[Layer], outputs: Mapping[str, float]) -> tuple[Layer, ...]:
    return tuple(replace(layer, output=outputs.get(layer.path)) for layer in layers)


def block_names(layers: Sequence[Layer]) -> dict[int, str]:
    """block -> its name for people: the number in its stack, the stack's name before it where there are several."""
    paths = {x.block: x.path.split(".") for x in layers if x.block is not None}
    numbers = {block: next((i for i, part in enumerate(path) if part.isdigit()), None) for block, path in paths.items()}
    stacks = [path[:at] for path, at in zip(paths.values(), numbers.values(), strict=True)]
    apart = next((i for i, parts in enumerate(zip_longest(*stacks)) if len(set(parts)) > 1), None)
    named: dict[int, str] = {}
    for block, path in paths.items():
        at = numbers[block]
        where = "" if apart is None or at is None or apart >= at else f"{path[apart]} "
        named[block] = f"{where}{block if at is None else path[at]}"
    return named
