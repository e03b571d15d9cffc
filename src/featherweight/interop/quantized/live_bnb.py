"""Live bitsandbytes layers, known by the name of their class: the library is imported by whoever made them.

    Linear4bit     weight: Params4bit (ceil(N K / 2), 1), weight.quant_state            Ŵ = table[code] · absmax
    Linear8bitLt   weight: Int8Params (N, K), its SCB there or in `state`               Ŵ = q · SCB / 127

On a CPU bitsandbytes 0.50 decodes wrongly where in_features is a multiple of 16 but not of the block, and once it has
run in eval mode it keeps its codes in another order, over which gradients stop silently and scales are rounded to
bf16. While adapters are attached neither happens: the layer decodes here, in the dtype and through the dtype that
bitsandbytes itself trains in. Codes that were in that other order already are put back in theirs at the attach.
8-bit layers compute over the decoded weight in eval mode too, not over int8 inputs: what merging gives, exactly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.core.host import frozen_class
from featherweight.interop.quantized.live import Codec, Library, Opened, refused
from featherweight.quant import ops


@dataclass(frozen=True)
class Codec4(Codec):
    """`through`: the dtype that the weight had, by way of which it is decoded; `nested` 0: scales are plain."""

    block: int
    nested: int
    through: torch.dtype

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        scales = packed["absmax"]
        if self.nested:
            parts = packed["nested_absmax"].repeat_interleave(self.nested)[: scales.numel()]
            scales = packed["nested_quant_map"][scales.int()] * parts + packed["offset"]
        codes = packed["weight"].view(torch.uint8).view(-1)
        return ops.decode4(codes, scales.float(), packed["quant_map"], self.block, shape, self.through).to(dtype)


class Linear4bit(Library):
    def opened(self, module: Any) -> Opened | None:
        if not named(module, "Linear4bit"):
            return None
        weight = module._parameters["weight"]
        state = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
        if state is None:
            return None
        return opened4(weight.data, state, lambda W: opened4((new := encoded4(module, W)).data, new.quant_state).weight)

    def settle(self, module: Any, dtype: torch.dtype) -> None:
        weight = module._parameters["weight"]
        state = getattr(weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            weight.data = in_order(weight.data, state)

    def pending(self, module: Any) -> bool:
        return named(module, "Linear4bit") and self.opened(module) is None

    def runs(self, module: Any, x: Tensor) -> bool:
        return x.device.type != "cpu"

    def compute(self, module: Any, x: Tensor) -> torch.dtype:
        if not module.compute_type_is_set:  # as the layer's own forward settles it at its first call
            module.set_compute_type(x)
            module.compute_type_is_set = True
        return module.compute_dtype or x.dtype

    def put(self, module: Any, W: Tensor) -> None:
        module._parameters["weight"] = weight = encoded4(module, W)
        module.quant_state = weight.quant_state


def opened4(codes: Tensor, state: Any, again: Callable[[Tensor], Tensor] = refused) -> Opened:
    """What codes and their QuantState say."""
    packed = {"weight": codes, "absmax": state.absmax, "quant_map": state.code}
    if state.nested:
        inner = state.state2
        packed |= {"nested_absmax": inner.absmax, "nested_quant_map": inner.code, "offset": state.offset}
    codec = Codec4(state.blocksize, state.state2.blocksize if state.nested else 0, state.dtype)
    name = f"bitsandbytes {state.quant_type} (block {state.blocksize}{', double' if state.nested else ''})"
    return Opened(codec, packed, tuple(state.shape), state.dtype, name, again)


def encoded4(module: Any, W: Tensor) -> Any:
    """W as another weight of the layer's kind, by its own library."""
    old = module._parameters["weight"]
    return type(old)(
        W.detach().to(old.quant_state.dtype), blocksize=old.blocksize, compress_statistics=old.compress_statistics,
        quant_type=old.quant_type, quant_storage=old.quant_storage,
    ).to(W.device)  # fmt: skip


def in_order(weight: Tensor, state: Any) -> Tensor:
    """Codes (N, K / 2) that eval mode has put in blocks of 32 rows, in their own order again. Scales were rounded to
    bf16 on the way there, and the state is changed to say so: values stay what they had become.
    """
    (N, K), rows = state.shape, 32
    halves = weight.view(-1, rows)
    nibbles = torch.cat((halves & 15, halves >> 4), -1)
    codes = nibbles.view(N // rows, K // 2, rows, 2).transpose(1, 2).reshape(-1, 2)
    state.absmax = state.absmax.T.float().reshape(-1)
    state.dtype, state.nested, state.packing_format_for_cpu = state.original_dtype, False, False
    state.state2 = state.offset = None
    flat = (codes[:, 0] << 4 | codes[:, 1]).view(state.original_qshape)
    return flat.view(getattr(state, "original_storage_type", None) or torch.uint8)


@dataclass(frozen=True)
class Codec8(Codec):
    """One scale for each output."""

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return packed["weight"].to(dtype) * (packed["SCB"] * (1 / 127)).to(dtype)[:, None]


class Linear8bitLt(Library):
    def opened(self, module: Any) -> Opened | None:
        if not named(module, "Linear8bitLt"):
            return None
        weight = module._parameters["weight"]
        scales = module.state.SCB if getattr(weight, "SCB", None) is None else weight.SCB
        if weight.dtype is not torch.int8 or scales is None:
            return None
        packed = {"weight": weight.data, "SCB": scales}
        dtype = vars(module).get("decodes_to", torch.float32)
        return Opened(Codec8(), packed, tuple(weight.shape), dtype, "bitsandbytes int8", again8)

    def settle(self, module: Any, dtype: torch.dtype) -> None:
        module.decodes_to = dtype

    def leave(self, module: Any) -> None:
        del module.decodes_to

    def pending(self, module: Any) -> bool:
        return named(module, "Linear8bitLt") and not module.state.has_fp16_weights and self.opened(module) is None

    def runs(self, module: Any, x: Tensor) -> bool:
        return x.device.type != "cpu"

    def put(self, module: Any, W: Tensor) -> None:
        new = type(module._parameters["weight"])(W.detach().cpu(), requires_grad=False).to(W.device)
        module._parameters["weight"] = new
        module.state.reset_grads()


def again8(W: Tensor) -> Tensor:
    """What a weight becomes by the library's rule: by way of fp16, q = round(127 w / absmax of its row)."""
    half = W.half().float()
    absmax = half.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return ((half * (127 / absmax)).round() * absmax / 127).to(W.dtype)


def named(module: Any, name: str) -> bool:
    """Whether a module is one of bitsandbytes' of this name, or of a class derived from it."""
    return any(c.__name__ == name and c.__module__.startswith("bitsandbytes.") for c in frozen_class(module).__mro__)
