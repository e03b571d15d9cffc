"""Few rows through plain layers: the same texts, and the layers as they were afterwards."""

import gc
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import featherweight as fw
from featherweight.kernels import native, native_linear
from featherweight.kernels.few import few_rows, plain, plain_forward
from featherweight.quant import NF4, Absmax, ops
from featherweight.tasks import generation

IDS = torch.arange(12).view(1, 12)
MASK = torch.ones_like(IDS)


@pytest.fixture
def served(monkeypatch):
    """Shapes of the weights that native code multiplied with."""
    if native.load().level is None:
        pytest.skip(native.load().reason)
    seen, real = [], native.load().functions["linear"]

    def watch(weight, *args):
        seen.append((weight._obj.n, weight._obj.k))
        real(weight, *args)

    for name in ("linear", "linear4", "linear8"):
        monkeypatch.setitem(ops.native, name, partial(getattr(native_linear, name), watch))
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


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [(NF4(block=32, double=True), torch.bfloat16), (Absmax(), torch.bfloat16), (None, torch.bfloat16),
     (None, torch.float32), (NF4(block=32), torch.float32)], ids=["nf4", "int8", "bf16", "fp32", "nf4-fp32"],
)  # fmt: skip
@torch.no_grad()
def test_what_is_taken_again_is_the_layers_own_answer_to_the_bit(llama, served, scheme, dtype, adapted):
    model = llama(dtype).eval()
    if scheme:
        fw.quantize(model, scheme)
    if adapted:
        fw.attach(model, fw.LoRA(rank=4, targets="linear"), head=False)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    rows = [torch.randn(1, n, 32, dtype=dtype) for n in (1, 1, 8, 2, *((64,) if dtype is torch.float32 else ()))]
    with few_rows(model):
        for layer in (m for m in layers if m.in_features == 32 and "forward" in vars(m)):
            for x in rows:
                del served[:]
                y = layer(x)
                count = len(served)
                expected = plain_forward(layer, x) if plain(layer) else type(layer).forward(layer, x)
                assert torch.equal(y, expected)
                assert y is not layer(x)
                if scheme != Absmax() or not adapted:
                    assert count == 1


@torch.no_grad()
def test_factors_made_for_the_call_outlive_it(llama, served):
    """PiSSA's factors are put together anew at each call: what is taken again reads them long after."""
    model = llama(torch.bfloat16).eval()
    fw.quantize(model, NF4(block=32))
    fw.attach(model, fw.LoRA(rank=4, targets="linear", init="pissa"), head=False)
    layer, x = model.model.layers[0].mlp.up_proj, torch.randn(1, 1, 32).bfloat16()
    (adapter,) = layer.adapters.values()
    torch.nn.init.normal_(adapter.B)
    expected = layer(x)
    assert adapter.factors()[0] is not adapter.factors()[0]
    with few_rows(model):
        for _ in range(3):
            assert torch.equal(layer(x), expected)
            gc.collect()
            litter = [torch.full((8, 32), torch.nan) for _ in range(64)] + [torch.full((48, 8), torch.nan)] * 64
    assert len(litter) == 128
    assert len(served) == 4


@torch.no_grad()
def test_few_rows_follow_the_switch(llama, served):
    model = llama(torch.bfloat16).eval()
    fw.quantize(model, NF4(block=32))
    layer, x = model.model.layers[0].mlp.up_proj, torch.randn(1, 1, 32).bfloat16()
    plain = layer(x)
    for name in ("a", "b"):
        fw.attach(model, fw.LoRA(rank=4, targets="linear"), name=name, head=False)
        torch.nn.init.normal_(layer.adapters[name].B)
    with few_rows(model):
        found = {}
        for name in ("a", "b", None, "a", "b"):
            with fw.switch(model, name):
                found.setdefault(name, []).extend(layer(x) for _ in range(3))
        with fw.switch(model, {"a": 0.5}):
            half = [layer(x) for _ in range(2)]
    for name, answers in found.items():
        with fw.switch(model, name):
            assert all(torch.equal(y, layer(x)) for y in answers)
    assert torch.equal(found[None][0], plain)
    assert len({tuple(y[0].flatten().tolist()) for y in found.values()}) == 3
    with fw.switch(model, {"a": 0.5}):
        assert all(torch.equal(y, layer(x)) for y in half)


def test_few_rows_are_seen_by_those_who_watch(llama, served):
    model = llama(torch.bfloat16).eval()
    fw.quantize(model, NF4(block=32))
    layer, x = model.model.layers[0].mlp.up_proj, torch.randn(1, 1, 32).bfloat16()
    with few_rows(model):
        with torch.no_grad():
            expected = [layer(x) for _ in range(2)][-1]
            assert torch.equal(layer(x=x), expected)
            assert torch.equal(model.lm_head(input=x), F.linear(x, model.lm_head.weight))
            with FlopCounterMode(display=False) as counter:
                layer(x)
            assert counter.get_total_flops() == 2 * 32 * 48
            with torch.autocast("cpu", dtype=torch.float16):
                assert layer(x).dtype is torch.float16
            assert layer(x.float()).dtype is torch.float32
            assert torch.equal(layer(x), expected)
            assert layer(torch.randn(2, 9, 32).bfloat16()).shape == (2, 9, 48)
        assert layer(x.requires_grad_()).requires_grad
        mapped = torch.func.vmap(layer)(torch.randn(3, 1, 32))
    assert mapped.shape == (3, 1, 48)


@torch.no_grad()
def test_floats_are_summed_in_another_order_while_few_rows_are_taken_and_nowhere_else(llama, served):
    """Attaching an adapter that starts as the identity changes no bit of a forward, however few its rows."""
    model = llama().eval()
    ids = IDS[:, :4]
    before = model(input_ids=ids).logits
    fw.attach(model, fw.LoRA(rank=4, targets="linear"), head=False)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not served
    with few_rows(model):
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-5, atol=1e-6)
        assert len(served) == 15
    assert torch.equal(model(input_ids=ids).logits, before)
    assert len(served) == 15


def test_layers_of_other_kinds_are_left_alone(llama, served):
    model = llama(torch.float64).eval()
    x = torch.ones(1, 32, dtype=torch.float64)
    with few_rows(model), torch.no_grad():
        assert torch.equal(model.lm_head(x), F.linear(x, model.lm_head.weight))
    assert not served
    model.lm_head.forward = F.relu
    with few_rows(model):
        assert model.lm_head.forward is F.relu
    assert model.lm_head.forward is F.relu
