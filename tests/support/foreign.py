"""Layers of other libraries, quantized there, and what their codes say by the formats' own formulas."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Two(nn.Module):
    """v(gelu(q(x))): gradients of the first layer pass through the second."""

    def __init__(self, q: nn.Module, v: nn.Module):
        super().__init__()
        self.q, self.v = q, v

    def forward(self, x: Tensor) -> Tensor:
        return self.v(nn.functional.gelu(self.q(x)))


def four(K: int, N: int, **more: Any) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    return filled(bnb.nn.Linear4bit(K, N, **{"quant_type": "nf4"} | more), K, N)


def eight(K: int, N: int) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    return filled(bnb.nn.Linear8bitLt(K, N, has_fp16_weights=False, threshold=6.0), K, N)


def torchao(K: int, N: int, kind: str, **more: Any) -> nn.Module:
    library = pytest.importorskip("torchao.quantization")
    layer = filled(nn.Linear(K, N), K, N)
    library.quantize_(layer, getattr(library, kind)(**more))
    return layer


def filled(layer: Any, K: int, N: int) -> nn.Module:
    g = torch.Generator().manual_seed(K * 1000 + N)
    layer.weight.data = torch.randn(N, K, generator=g) / K**0.5
    layer.bias.data = torch.randn(N, generator=g)
    return layer.to("cpu").requires_grad_(False)  # this is where bitsandbytes quantizes


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "nf4": four,
    "fp4-plain-scales": lambda K, N: four(K, N, quant_type="fp4", compress_statistics=False),
    "nf4-in-bf16-bytes": lambda K, N: four(K, N, quant_storage=torch.bfloat16),
    "int8": eight,
    "torchao-int8": lambda K, N: torchao(K, N, "Int8WeightOnlyConfig"),
    "torchao-int8-activations": lambda K, N: torchao(K, N, "Int8DynamicActivationInt8WeightConfig"),
    "torchao-int4": lambda K, N: torchao(K, N, "IntxWeightOnlyConfig", weight_dtype=torch.int4),
    "torchao-float8": lambda K, N: torchao(K, N, "Float8WeightOnlyConfig"),
}


def values(layer: Any) -> Tensor:
    """Ŵ (out, in) of a layer as it comes from its library."""
    if type(layer.weight).dequantize is not Tensor.dequantize:
        return layer.weight.dequantize()
    saved = layer.state_dict()
    if "SCB" in saved:
        return saved["weight"] * saved["SCB"][:, None] / 127
    return four_bit(saved)


def four_bit(saved: dict[str, Tensor]) -> Tensor:
    """The formula over a bitsandbytes state dict."""
    said = json.loads(bytes(next(t for k, t in saved.items() if "quant_state" in k).tolist()))
    scales = saved["weight.absmax"]
    if "nested_offset" in said:
        outer = saved["weight.nested_absmax"].repeat_interleave(said["nested_blocksize"])[: len(scales)]
        scales = saved["weight.nested_quant_map"][scales.int()] * outer + said["nested_offset"]
    codes = saved["weight"].view(torch.uint8).flatten()
    units = saved["weight.quant_map"][torch.stack((codes >> 4, codes & 15), 1).flatten().int()]
    n = said["shape"][0] * said["shape"][1]
    W = units[:n] * scales.repeat_interleave(said["blocksize"])[:n]
    return W.view(said["shape"]).to(getattr(torch, said["dtype"]))
