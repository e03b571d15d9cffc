"""bitsandbytes' 8-bit weights as its state dicts keep them.

    P.weight          int8 (N, K)       one scale for each output
    P.SCB             float32 (N,)      W = q · SCB / 127
    P.weight_format   uint8 ()          0: row-major, the only one written since 0.45

Source: bitsandbytes 0.50, nn.Linear8bitLt.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.core.errors import Problem, raise_all

FIX = "the file is damaged, or of another version: save it again with the library that wrote it"


@dataclass(frozen=True, eq=False)
class Weight8:
    """One weight: `codes` int8 (N, K), `absmax` float32 (N,)."""

    codes: Tensor
    absmax: Tensor


def read8(tensors: Mapping[str, Tensor], path: str) -> Weight8:
    """The weight of the module at `path`. Raises InputError naming every tensor that is not as the layout says."""
    stem = f"{path}." if path else ""
    raise_all(wrong(tensors, stem))
    return Weight8(tensors[f"{stem}weight"], tensors[f"{stem}SCB"].reshape(-1))


def wrong(tensors: Mapping[str, Tensor], stem: str) -> Iterator[Problem]:
    codes, absmax, form = (tensors.get(f"{stem}{name}") for name in ("weight", "SCB", "weight_format"))
    if codes is None or codes.dtype is not torch.int8 or codes.dim() != 2:
        yield Problem("not an 8-bit weight", f"{stem}weight", "int8 (out, in)", said(codes), FIX)
    elif absmax is None or absmax.dtype is not torch.float32 or absmax.numel() != codes.shape[0]:
        yield Problem("not the scales of this weight", f"{stem}SCB", f"float32 ({codes.shape[0]},)", said(absmax), FIX)
    elif not absmax.is_meta and not torch.isfinite(absmax).all():
        yield Problem("NaN or inf", f"{stem}SCB", "finite numbers", fix=FIX)
    if form is not None and (form.numel() != 1 or int(form) != 0):
        fix = "load it with the version that wrote it and save it again: newer ones write rows"
        yield Problem("tiled for a GPU", f"{stem}weight_format", "0 (row-major)", str(form.tolist()), fix)


def said(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def write8(weight: Weight8, path: str) -> dict[str, Tensor]:
    """The state dict's tensors of one weight."""
    stem = f"{path}." if path else ""
    form = torch.tensor(0, dtype=torch.uint8)
    return {f"{stem}weight": weight.codes, f"{stem}SCB": weight.absmax, f"{stem}weight_format": form}
