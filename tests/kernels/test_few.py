"""Few rows through plain layers in bfloat16: the same texts, and the layers as they were afterwards."""

import pytest
import torch
from torch.nn import functional as F

import featherweight as fw
from featherweight.kernels import native
from featherweight.kernels.few import few_rows
from featherweight.quant import ops
from featherweight.tasks import generation

IDS = torch.arange(12).view(1, 12)
MASK = torch.ones_like(IDS)


@pytest.fixture
def served(monkeypatch):
    """Shapes of the weights that native code multiplied with."""
    if native.load().level is None:
        pytest.skip(native.load().reason)
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    assert ops.native["linear16"](one, one, None) == 1  # the first call puts the function in its place
    seen, real = [], ops.native["linear16"]

    def watch(x, W, *args):
        y = real(x, W, *args)
        seen.extend([tuple(W.shape)] if y is not NotImplemented else [])
        return y

    monkeypatch.setitem(ops.native, "linear16", watch)
    return seen


def test_generation_takes_every_plain_layer_and_gives_it_back(llama, served):
    model = llama(torch.bfloat16).eval()
    before = [(type(m), dict(vars(m))) for m in model.modules()]
    out = generation.run(model, IDS, MASK, 0, 3, {"min_new_tokens": 3})
    assert out.shape == (1, 15)
    assert len(served) == 3 + 2 * 7 * 2  # the head three times, a prompt of 12 rows by torch, two steps of two blocks
    assert [(type(m), dict(vars(m))) for m in model.modules()] == before
    with pytest.raises(ZeroDivisionError), few_rows(model):
        1 / 0  # noqa: B018
    assert "forward" not in vars(model.lm_head)


@torch.no_grad()
def test_the_same_logits_to_rounding(llama, served):
    model = llama(torch.bfloat16).eval()
    expected = model(input_ids=IDS[:, :4]).logits
    with few_rows(model):
        found = model(input_ids=IDS[:, :4]).logits
        torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
        assert len(served) == 15
        with torch.autocast("cpu", dtype=torch.float16):
            assert model.lm_head(torch.ones(1, 32)).dtype is torch.float16
        with torch.enable_grad():
            assert model.lm_head(torch.ones(1, 32, dtype=torch.bfloat16)).requires_grad
    assert len(served) == 15


@torch.no_grad()
def test_lora_on_a_plain_layer_of_few_rows(llama, served):
    model = llama(torch.bfloat16).eval()
    fw.attach(model, fw.LoRA(rank=4, targets="linear"), head=False)
    layer = model.model.layers[0].mlp.up_proj
    adapter = next(iter(layer.adapters.values()))
    torch.nn.init.normal_(adapter.B)
    x = torch.randn(1, 2, 32, dtype=torch.bfloat16)
    expected = F.linear(x.double(), layer.weight.double() + adapter.delta().double())
    torch.testing.assert_close(layer(x).double(), expected, rtol=2e-2, atol=2e-2)
    assert served == [(48, 32)]


def test_layers_of_other_kinds_are_left_alone(llama):
    model = llama().eval()
    with few_rows(model):
        assert "forward" not in vars(model.lm_head)  # float32, which torch multiplies fast
    model = llama(torch.bfloat16).eval()
    model.lm_head.forward = F.relu
    with few_rows(model):
        assert model.lm_head.forward is F.relu
    assert model.lm_head.forward is F.relu
