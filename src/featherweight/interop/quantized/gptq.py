"""GPTQ and AWQ checkpoints: integers in 32-bit words, b bits each, lowest bits first.

    P.qweight   int32 (K b / 32, N)             codes q, packed along K         AWQ: (K, N b / 32), along N
    P.qzeros    int32 (ceil(K / g), N b / 32)   zero points z, packed along N
    P.scales    float16 (ceil(K / g), N)
    P.g_idx     int32 (K,)                      group of each input; any order where inputs were taken by activation

    W[n, k] = scales[g, n] · (q[k, n] − z[g, n]),  g = g_idx[k]

`checkpoint_format` "gptq" stores z − 1, wrapping at 2^b; "gptq_v2" stores z. Some symmetric files carry the other's
label: zeros that are all 2^(b−1) under "gptq", or all 2^(b−1) − 1 under "gptq_v2", are taken for what they are.
AWQ stores z, and within each word its values in the order 0 2 4 6 1 3 5 7.
Source: IST-DASLab/gptq; AutoGPTQ/AutoGPTQ and ModelCloud/GPTQModel, qlinear; mit-han-lab/llm-awq, qmodule.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import Problem, raise_all
from featherweight.quant import bitstream
from featherweight.quant.gptq import GPTQ
from featherweight.quant.scheme import Packed

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2", "awq")
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word value 0, 1, ... lies
FIX = "the file is damaged, or its config is another's"


@dataclass(frozen=True)
class Layout:
    """What a checkpoint's `quantization_config` says of all its weights; `size` -1 is one group for all inputs."""

    bits: int
    size: int
    form: str
    symmetric: bool
    act_order: bool
    damp: float

    @property
    def half(self) -> int:
        return 1 << self.bits - 1


def layout_of(config: Mapping[str, Any], where: str = "quantization_config") -> Layout:
    """The layout that a `quantization_config`, or a quantize_config.json, names. Raises InputError for any other."""
    method = str(config.get("quant_method", "gptq")).lower()
    form = "awq" if method == "awq" else str(config.get("checkpoint_format") or config.get("format") or "gptq")
    bits, size = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size", 128))
    allowed = (4,) if form == "awq" else BITS
    kernel = "export it as gptq or gptq_v2: other formats are laid out for one kernel"
    found = {
        "checkpoint_format": form in FORMATS or (" or ".join(FORMATS), repr(form), kernel),
        "bits": bits in allowed or (" or ".join(map(str, allowed)), repr(bits), ""),
        "group_size": (isinstance(size, int) and (size > 0 or size == -1)) or ("a number, or -1", repr(size), ""),
    }
    if form == "awq":  # other versions are packed along K, or for one kernel
        version = str(config.get("version") or "gemm").lower()
        found["version"] = version == "gemm" or ("gemm", repr(version), kernel.replace("gptq or gptq_v2", "gemm"))
    raise_all(Problem("cannot be read", f"{where}:{key}", *said) for key, said in found.items() if said is not True)
    damp = config.get("damp_percent")
    symmetric = not config.get("zero_point", True) if form == "awq" else bool(config.get("sym", True))
    return Layout(int(bits or 0), int(size), form, symmetric, bool(config.get("desc_act")), float(damp or 0.01))


def overridden(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The config of one module: `dynamic` maps patterns of paths to what is other there; "-:" is a module in float."""
    for pattern, other in (config.get("dynamic") or {}).items():
        if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), path):
            return {**config, **other}
    return dict(config)


def read_gptq(tensors: Mapping[str, Tensor], path: str, layout: Layout) -> tuple[GPTQ, Packed]:
    """The weight of the module at `path`. Raises InputError naming every tensor that is not as the layout says."""
    stem, bits = f"{path}." if path else "", layout.bits
    raise_all(wrong(tensors, stem, layout))
    qweight, qzeros, scales = (tensors[f"{stem}{n}"] for n in ("qweight", "qzeros", "scales"))
    if layout.form == "awq":
        K, N = qweight.shape[0], scales.shape[1]
        codes, zeros = straight(qweight).T, straight(qzeros)
    else:
        K, N = qweight.shape[0] * 32 // bits, scales.shape[1]
        codes = bitstream.unpack(as_bytes(qweight.T), bits, K)
        zeros = bitstream.unpack(as_bytes(qzeros), bits, N)
        zeros = zeros + int(less_one(zeros, layout)) & (1 << bits) - 1
    packed = {"codes": bitstream.pack(codes, bits), "scales": scales.float()}
    symmetric = bool((zeros == layout.half).all())
    if not symmetric:
        packed["zeros"] = bitstream.pack(zeros, bits)
    scheme = GPTQ(bits, layout.size, layout.act_order, layout.damp, symmetric)
    g_idx = tensors.get(f"{stem}g_idx")
    neighbors = torch.arange(K) // scheme.width(K)
    if g_idx is not None and not torch.equal(g_idx.long().cpu(), neighbors):
        return replace(scheme, act_order=True), packed | {"g_idx": g_idx.int()}
    return replace(scheme, static_groups=scheme.act_order), packed


def as_bytes(words: Tensor) -> Tensor:
    """int32 (rows, n) -> uint8 (rows, 4 n), lowest byte first."""
    return words.contiguous().view(torch.uint8)


def straight(words: Tensor) -> Tensor:
    """AWQ's words (rows, N / 8) -> values uint8 (rows, N) in their order."""
    values = bitstream.unpack(as_bytes(words), 4, words.shape[1] * 8)
    return values.unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1)


def less_one(zeros: Tensor, layout: Layout) -> bool:
    """Whether the zeros as stored are z − 1: what the label says, unless a symmetric file shows the other's."""
    if layout.symmetric and zeros.numel():
        if (zeros == layout.half).all():
            return False
        if (zeros == layout.half - 1).all():
            return True
    return layout.form == "gptq"


def wrong(tensors: Mapping[str, Tensor], stem: str, layout: Layout) -> Iterator[Problem]:
    """What of a module's tensors is not as the layout says."""
    held = {n: tensors.get(f"{stem}{n}") for n in ("qweight", "qzeros", "scales")}
    bad = [n for n, t in held.items() if t is None or t.dim() != 2 or t.is_floating_point() != (n == "scales")]
    for name in bad:
        kind = "a float matrix" if name == "scales" else "an int32 matrix"
        yield Problem("missing or misshapen tensor", f"{stem}{name}", kind, said(held[name]), FIX)
    qweight, qzeros, scales = held.values()
    if bad or qweight is None or qzeros is None or scales is None:
        return
    bits, (groups, N), along_N = layout.bits, scales.shape, scales.shape[1] * layout.bits // 32
    awq = layout.form == "awq"
    K = qweight.shape[0] if awq else qweight.shape[0] * 32 // bits
    expected = {
        "scales": (-(-K // (layout.size if layout.size > 0 else K)), N),
        "qzeros": (groups, along_N),
        "qweight": (qweight.shape[0], along_N if awq else N),
    }
    for name, dims in expected.items():
        if tuple(tensors[f"{stem}{name}"].shape) != dims:
            what = f"{dims}, with {bits} bits in groups of {layout.size}"
            yield Problem("misshapen tensor", f"{stem}{name}", what, said(tensors[f"{stem}{name}"]), FIX)
    if not torch.isfinite(scales).all():
        yield Problem("NaN or inf", f"{stem}scales", "finite numbers", fix=FIX)
    g_idx = tensors.get(f"{stem}g_idx")
    if g_idx is not None and (g_idx.numel() != K or int(g_idx.min()) < 0 or int(g_idx.max()) >= groups):
        numbers = f"{K} numbers from 0 to {groups - 1}"
        yield Problem("not the groups of this weight", f"{stem}g_idx", numbers, said(g_idx), FIX)


def said(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def write_gptq(scheme: GPTQ, packed: Packed, shape: tuple[int, int], path: str, form: str = "gptq_v2") -> Packed:
    """The checkpoint's tensors of one weight (out, in), as "gptq" or "gptq_v2"; scales become float16.

    Raises InputError for what the format cannot say.
    """
    stem, bits, (N, K) = f"{path}." if path else "", scheme.bits, shape
    half = torch.full((len(packed["scales"]), N), 1 << bits - 1, dtype=torch.uint8, device=packed["codes"].device)
    zeros = half if scheme.symmetric else bitstream.unpack(packed["zeros"], bits, N)
    scales = packed["scales"].half()
    raise_all(unsayable(stem, bits, shape, zeros, scales, form))
    stored = zeros - int(form == "gptq")
    neighbors = torch.arange(K, dtype=torch.int32) // scheme.width(K)
    return {
        f"{stem}qweight": packed["codes"].view(torch.int32).T.contiguous(),
        f"{stem}qzeros": bitstream.pack(stored, bits).view(torch.int32),
        f"{stem}scales": scales,
        f"{stem}g_idx": packed["g_idx"] if scheme.scattered else neighbors,
    }


def unsayable(
    stem: str, bits: int, shape: tuple[int, int], zeros: Tensor, scales: Tensor, form: str
) -> Iterator[Problem]:
    """What a file of this form cannot hold of a weight."""
    step = 32 if bits == 3 else 32 // bits
    for name, n in zip(("out_features", "in_features"), shape, strict=True):
        if n % step:
            fix = "leave this module out (skip=), or keep the model in our own format"
            yield Problem("does not fill 32-bit words", f"{stem}{name}", f"a multiple of {step}", str(n), fix)
    if form == "gptq" and (zeros == 0).any():
        yield Problem("stored as z − 1, which cannot say 0", f"{stem}qzeros", "1 or more", "0", 'write "gptq_v2"')
    if form not in FORMATS[:2]:
        yield Problem("not a format to write", "form", " or ".join(FORMATS[:2]), repr(form))
    if not torch.isfinite(scales).all():
        yield Problem("a scale is too large for float16", f"{stem}scales", "65504 at most", fix="skip this module")


def config_of(schemes: list[GPTQ], form: str = "gptq_v2") -> dict[str, Any]:
    """What `quantization_config` of config.json, and quantize_config.json, say of layers in these schemes.

    Raises InputError where they differ in bits or groups.
    """
    first = schemes[0]
    kinds = {(s.bits, s.group) for s in schemes}
    if len(kinds) > 1:
        got = ", ".join(sorted({repr(s) for s in schemes}))
        raise_all([Problem("a GPTQ folder has one width and one group", "format", repr(first), got)])
    return {
        "quant_method": "gptq", "bits": first.bits, "group_size": first.group,
        "desc_act": any(s.act_order for s in schemes), "static_groups": any(s.static_groups for s in schemes),
        "sym": all(s.symmetric for s in schemes), "damp_percent": first.damp, "true_sequential": True,
        "lm_head": False, "checkpoint_format": form, "pack_dtype": "int32",
    }  # fmt: skip
