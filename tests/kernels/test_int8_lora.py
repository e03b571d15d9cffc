"""LoRA over an int8 base: the fused function runs the scheme's own products, and is the plain path's equal."""

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.core import fused
from featherweight.core.host import hosts
from featherweight.quant import QuantLinear


@pytest.fixture
def based(llama):
    """A fresh Llama over int8 codes with LoRA on all linear layers, B away from 0."""

    def make(dtype, dropout=0.0, **options):
        model = llama(dtype)
        fw.quantize(model, fw.LLMInt8(**options))
        fw.attach(model, fw.LoRA(rank=4, targets="linear", dropout=dropout))
        for n, p in model.named_parameters():
            if "lora_B" in n:
                nn.init.normal_(p, std=0.05)
        return model

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"threshold": 1.5}, {"backward": "exact"}], ids=str)
def test_a_fused_step_is_the_plain_one(based, agrees, dtype, options):
    model = based(dtype, **options)
    served = [h for _, h in hosts(model) if (type(h.adapters["default"]), h.frozen_class) in fused.kernels]
    assert len(served) == 14
    assert all(isinstance(h, QuantLinear) for h in served)
    agrees(model, dtype, trained=28)


def test_outliers_are_seen_by_the_fused_function(based):
    """Features at sixty times the others: the low-rank change is on top of a product that sets them apart."""
    model, plain = based(torch.float32), based(torch.float32, threshold=0.0)
    layer, other = (m.model.layers[0].self_attn.q_proj for m in (model, plain))
    x = torch.randn(5, 32)
    x[:, 3] *= 60
    with torch.no_grad():
        W = layer.weight + layer.adapters["default"].delta()
        expected = x @ W.T
        apart, without = layer(x), other(x)
    error, worse = (float((y - expected).norm() / expected.norm()) for y in (apart, without))
    assert 5 * error < worse


def test_it_keeps_no_dense_weight_for_the_backward(based):
    """Codes are kept by reference; nothing of a weight's size in floating point is."""
    model = based(torch.bfloat16)
    layer = model.model.layers[0].mlp.down_proj
    x = torch.randn(3, 48, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x).sum().backward()
    dense = [t for t in kept if t.is_floating_point() and t.numel() >= 48 * 32]
    assert not dense
    assert any(t.dtype is torch.int8 for t in kept)
