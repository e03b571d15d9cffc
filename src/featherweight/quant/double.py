"""Double quantization: the scales are quantized too, to 8 bits.

    c = absmax of each block        d = c - o,  o = mean(c)        a = max|d| in blocks of 256 scales
    code = argmin_j |d / a - m_j|   ĉ = m_code · a + o             m: the dynamic map (`dynamic.py`)

8/64 + 32/(64 · 256) = 0.127 bits a parameter in place of 32/64 = 0.5. The mean o is kept in float32, as is every a.
One scale that is a thousand times the others takes the resolution from 255: their ĉ may even fall to 0 or below. So
where the scales' mean relative error passes 1 %, their median is tried as o: the map is finest at 0, where the many
then lie; and no ĉ of a block that is not all zero is ever <= 0: such a scale gets the next code that gives a positive
one. NaN or infinity among 256 scales makes their a NaN, and nothing else.
Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314. The layout is bitsandbytes'; its CPU search misses the nearest
level in a thousandth of the cases and near 0 (mean error of N(0, 1) scales 2.0e-3 there, 1.65e-3 here).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from featherweight.quant import codebooks, ops
from featherweight.quant.blocks import blocks, cut
from featherweight.quant.ops import NESTED
from featherweight.quant.scheme import Layout

POOR = 0.01  # mean relative error of scales from which the median is tried


def layout(count: int) -> Layout:
    """What so many scales are stored as."""
    nested = (torch.float32, (blocks(count, NESTED),))
    return {"absmax": (torch.uint8, (count,)), "nested_absmax": nested, "nested_offset": (torch.float32, ())}


def encode(scales: Tensor) -> dict[str, Tensor]:
    """float32 (count,), none negative -> as `layout` says."""
    sound = scales[scales.isfinite()]
    packed = around(scales, sound.double().mean().float())
    if error(packed, scales) <= POOR or not sound.numel():
        return packed
    other = around(scales, sound.median())
    return min(packed, other, key=lambda p: error(p, scales))


def around(scales: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """Encoded as differences from an offset."""
    table = codebooks.levels("dynamic8", scales)
    rows = cut(scales - offset, NESTED)
    rows[-1, (scales.numel() - 1) % NESTED + 1 :] = 0  # what only fills the last row up
    nested = rows.abs().amax(1)
    nested = torch.where(nested.isfinite(), nested, torch.nan)
    unit = rows / torch.where(nested == 0, 1.0, nested)[:, None]
    codes = torch.bucketize(unit, (table[1:] + table[:-1]) / 2).clamp_max_(len(table) - 1)
    lost = (table[codes] * nested[:, None] + offset <= 0) & (cut(scales, NESTED) > 0)
    least = torch.bucketize(-offset / nested, table, right=True)[:, None]  # the first code above -o / a
    codes = torch.where(lost, torch.maximum(codes + 1, least), codes).clamp_max_(len(table) - 1)
    return {
        "absmax": codes.view(-1)[: scales.numel()].to(torch.uint8),
        "nested_absmax": nested,
        "nested_offset": offset,
    }


def error(packed: dict[str, Tensor], scales: Tensor) -> float:
    """Mean relative error of the scales that are neither 0 nor NaN or infinite."""
    decoded = decode(packed["absmax"], packed["nested_absmax"], packed["nested_offset"])
    relative = ((decoded - scales) / scales).abs()[(scales > 0) & decoded.isfinite()]
    return float(relative.mean()) if relative.numel() else 0.0


def nested(packed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The map, and what it is scaled and moved by: all but the codes of what `ops.decode_scales` takes."""
    return codebooks.levels("dynamic8", packed["absmax"]), packed["nested_absmax"], packed["nested_offset"]


def decode(codes: Tensor, nested: Tensor, offset: Tensor) -> Tensor:
    """uint8 (count,), float32 (⌈count / 256⌉,), float32 () -> float32 (count,)."""
    return ops.decode_scales(codes, codebooks.levels("dynamic8", codes), nested, offset, NESTED)
