"""Quantized modules: the class changes in place, codes stay what they are, and gradients are those of Ŵ."""

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from support.codes import coded, quantized_modules, with_codes
from support.models import disturb, inputs, logits, output, tiny
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.core.host import hosts
from featherweight.quant import NF4, Quantized, QuantLinear
from featherweight.quant.embedding import QuantEmbedding
from featherweight.quant.quantized import become_plain, become_quantized, dequantize

SHAPES = [(1, 1), (3, 1), (5, 3), (7, 32), (8, 48), (9, 80), (6, 96), (5, 112), (4, 160), (3, 100), (64, 64)]
ARCHS = ("llama", "gpt2", "bert")


def layer(out: int, into: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(out * 1000 + into)
    return nn.Linear(into, out, bias=bias).to(dtype)


def packed_of(module: Any) -> dict[str, Tensor]:
    return {k: t.clone() for k, t in module.packed.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_with_the_decoded_weight_on_every_shape(shape: tuple[int, int], bias: bool) -> None:
    """Outputs and input gradients, in and out of training (laws 1 and 4)."""
    plain = layer(*shape, bias)
    module = coded(copy.deepcopy(plain))
    W = module.weight
    assert W.shape == plain.weight.shape
    assert (W - plain.weight).abs().max() <= 0.1519 * plain.weight.abs().max()
    x = torch.randn(4, 3, shape[1], requires_grad=True)
    y = module.train()(x)
    torch.testing.assert_close(y, F.linear(x, W, plain.bias))
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close(dx, g @ W)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(x), y)


def test_it_looks_like_what_it_was() -> None:
    module = coded(layer(5, 8))
    assert type(module) is QuantLinear
    assert isinstance(module, nn.Linear)
    assert (module.in_features, module.out_features) == (8, 5)
    assert list(module.state_dict()) == ["bias", "codes", "absmax", "scheme"]
    assert [n for n, _ in module.named_parameters()] == ["bias"]
    assert repr(module) == "QuantLinear(in_features=8, out_features=5, bias=True, NF4())"
    with pytest.raises(TypeError, match="made of a plain module"):
        QuantLinear(8, 5)


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    y = module(x)
    return y, *torch.autograd.grad(y.square().sum(), (x, module.bias))


def test_train_eval_train_keeps_gradients_and_codes_to_the_bit() -> None:
    """Law 2."""
    module = coded(layer(48, 80)).train()
    before, x = packed_of(module), torch.randn(6, 80, requires_grad=True)
    first = gradients(module, x)
    with torch.no_grad():
        module.eval()(x)
    again = gradients(module.train(), x)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(t, before[k]) for k, t in module.packed.items())


@pytest.mark.parametrize("arch", ARCHS)
def test_saved_in_any_mode_the_bytes_are_the_same(arch: str) -> None:
    """Law 3: state → load → state, before and after training, evaluation, casts and copies."""
    model = with_codes(tiny(arch))
    before = {k: t.clone() for k, t in model.state_dict().items()}
    output(model.train(), inputs(arch)).square().mean().backward()
    logits(model.eval(), inputs(arch))
    for other in (model, copy.deepcopy(model), model.bfloat16().float()):
        after = other.state_dict()
        assert list(after) == list(before)
        codes = [k for k in before if k.rpartition(".")[2] in ("codes", "absmax", "scheme")]
        assert codes
        assert all(torch.equal(after[k], before[k]) and after[k].dtype == before[k].dtype for k in codes)
    fresh = with_codes(tiny(arch))
    for module in quantized_modules(fresh).values():
        module._buffers["codes"].zero_()
    fresh.load_state_dict(before, strict=True)
    assert all(torch.equal(t, before[k]) for k, t in fresh.state_dict().items())


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("arch", ARCHS)
def test_copies_are_equal_and_independent(arch: str, how: str) -> None:
    model = fw.attach(with_codes(tiny(arch)), fw.LoRA(rank=2))
    before = logits(model, inputs(arch))
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    else:
        other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(other, inputs(arch)), before)
    for module in quantized_modules(other).values():
        module._buffers["codes"].zero_()
    assert torch.equal(logits(model, inputs(arch)), before)
    assert not torch.equal(logits(other, inputs(arch)), before)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("method", [fw.LoRA(rank=3, targets="linear"), fw.IA3(), fw.DoRA(rank=2)], ids=repr)
def test_quantizing_comes_before_or_after_attaching(arch: str, method: Any) -> None:
    torch.manual_seed(1)
    one = fw.attach(with_codes(tiny(arch)), fw.LoRA(rank=3, targets="linear"))
    torch.manual_seed(1)
    two = with_codes(fw.attach(tiny(arch), fw.LoRA(rank=3, targets="linear")))
    assert [type(m).__name__ for m in one.modules()] == [type(m).__name__ for m in two.modules()]
    assert len(list(hosts(one))) == len(list(hosts(two)))
    for model in (one, two):
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.copy_(torch.linspace(-0.1, 0.1, p.numel()).view(p.shape))
    assert torch.equal(logits(one, inputs(arch)), logits(two, inputs(arch)))
    grads = []
    for model in (one, two):
        output(model, inputs(arch)).square().sum().backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.requires_grad})
    assert list(grads[0]) == list(grads[1])
    assert all(torch.equal(g, grads[1][k]) for k, g in grads[0].items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casts_leave_codes_and_scales_alone(dtype: torch.dtype) -> None:
    module = coded(layer(6, 48))
    before, W = packed_of(module), module.weight
    module.to(dtype)
    assert module.dtype == module.weight.dtype == module.bias.dtype == dtype
    assert all(torch.equal(t, before[k]) and t.dtype == before[k].dtype for k, t in module.packed.items())
    assert module(torch.randn(2, 48, dtype=dtype)).dtype == dtype
    assert torch.equal(module.float().weight, W), "decoded anew, not cast back"


def test_moves_to_devices_and_back() -> None:
    module = coded(layer(6, 48)).to("meta")
    assert module.weight.is_meta
    assert {t.device.type for t in module.packed.values()} == {"meta"}
    module.to_empty(device="cpu")
    assert {(k, t.device.type, t.dtype) for k, t in module.packed.items()} == {
        ("codes", "cpu", torch.uint8), ("absmax", "cpu", torch.float32)}  # fmt: skip
    shared = coded(layer(6, 48)).share_memory()
    assert all(t.is_shared() for t in shared.packed.values())


def test_compiled_whole_it_computes_the_same() -> None:
    module, x = coded(layer(48, 80)), torch.randn(6, 80, requires_grad=True)
    torch._dynamo.reset()
    whole = torch.compile(module, fullgraph=True, backend="aot_eager")
    y, z = whole(x), module(x)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(*(torch.autograd.grad(o.square().sum(), x)[0] for o in (y, z)))


def test_a_model_under_an_adapter_is_compiled_whole() -> None:
    model = fw.attach(with_codes(tiny("gpt2")), fw.LoRA(rank=2, targets="linear"))
    disturb(model)
    torch._dynamo.reset()
    whole, found = torch.compile(model, fullgraph=True, backend="aot_eager"), []
    for run in (whole, model):
        y = run(**inputs("gpt2")).logits
        found.append((y, *torch.autograd.grad(y.square().sum(), [p for p in model.parameters() if p.requires_grad])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_exported_it_computes_the_same() -> None:
    module, x = coded(layer(16, 80)), torch.randn(6, 80)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


def test_recomputed_and_under_autocast() -> None:
    module, x = coded(layer(48, 80)), torch.randn(6, 80, requires_grad=True)
    plain = checkpoint(module, x, use_reentrant=False)
    assert all(torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (plain, module(x)))) for _ in "a")
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        W = module.weight.bfloat16()
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y, F.linear(x.bfloat16(), W, module.bias.bfloat16()))
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.dtype is torch.float32
    torch.testing.assert_close(dx, torch.ones_like(y).matmul(W).float())


def test_only_codes_are_kept_for_the_backward_pass() -> None:
    module, x = coded(layer(256, 256)), torch.randn(4, 256, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(x)
    dense = [t for t in kept if t.is_floating_point() and t.numel() == 256 * 256]
    assert kept
    assert not dense


def test_conv1d_keeps_codes_of_the_matrix_out_in() -> None:
    """As bitsandbytes does: scales go with outputs, whichever way round the module keeps its weight."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    plain = Conv1D(96, 80)
    module, W = coded(copy.deepcopy(plain)), plain.weight.detach()
    assert type(module).__name__ == "Conv1D"
    assert isinstance(module, Conv1D)
    assert module.shape == (96, 80)
    assert module.weight.shape == plain.weight.shape == (80, 96)
    assert torch.equal(module.packed["codes"], NF4().encode(W.T.contiguous())["codes"])
    x = torch.randn(2, 3, 80)
    torch.testing.assert_close(module(x), x @ module.weight + plain.bias)
    become_plain(module)
    assert type(module) is Conv1D
    assert module.weight.is_contiguous()


def test_subclasses_of_linear_keep_their_class() -> None:
    class Named(nn.Linear):
        """Adds nothing."""

    module = Named(48, 8)
    module = coded(module)
    assert isinstance(module, Named)
    assert type(module).__name__ == "Named"
    assert isinstance(module, Quantized)

    class Other(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    with pytest.raises(fw.InputError, match=r"cannot be quantized; got Other"):
        coded(Other(48, 8))
    with pytest.raises(fw.InputError, match="got Conv2d"):
        become_quantized(nn.Conv2d(2, 2, 1), NF4(), {})


@pytest.mark.parametrize("width", [64, 48, 7])
def test_embeddings_look_up_decoded_rows(width: int) -> None:
    torch.manual_seed(0)
    plain = nn.Embedding(50, width, padding_idx=0)
    module = coded(copy.deepcopy(plain))
    assert type(module) is QuantEmbedding
    ids = torch.tensor([[0, 3, 49], [3, 3, 1]])
    assert torch.equal(module(ids), module.weight[ids])
    assert module(ids).shape == (2, 3, width)


def test_embeddings_that_scale_still_do() -> None:
    model = tiny("gemma")
    table = model.get_input_embeddings()
    plain, ids = copy.deepcopy(table), torch.tensor([[5, 9, 5]])
    module = coded(table)
    assert type(module).__name__ == type(plain).__name__
    plain.weight.data.copy_(module.weight)
    assert torch.equal(module(ids), plain(ids))
    assert not torch.equal(module(ids), module.weight[ids])


def test_tied_modules_may_share_their_codes() -> None:
    """One matrix, one set of codes, through copies and casts; merging into one of the two unties them."""
    model = tiny("gpt2")
    head, table = model.lm_head, model.transformer.wte
    assert head.weight is table.weight
    codes = NF4().encode(head.weight)
    for module in (head, table):
        become_quantized(module, NF4(), codes)
    for other in (model, copy.deepcopy(model).bfloat16(), pickle.loads(pickle.dumps(model))):
        assert other.lm_head.packed["codes"] is other.transformer.wte.packed["codes"]
        assert torch.equal(other.lm_head.weight, other.transformer.wte.weight)
    count = fw.trainable(model)
    assert count.total == fw.trainable(tiny("gpt2")).total
    plain = dequantize(copy.deepcopy(model))
    assert plain.lm_head.weight is plain.transformer.wte.weight
    assert count.codes == 99 * 32
    fw.attach(model, fw.LoRA(rank=2, targets="head"))
    with torch.no_grad():
        head.adapters["default"].lora_B.weight.fill_(0.1)
    before = logits(model, inputs("gpt2"))
    fw.merge(model)
    torch.testing.assert_close(logits(model, inputs("gpt2")), before)
    assert model.config.tie_word_embeddings is False


@pytest.mark.parametrize("arch", ARCHS)
def test_dequantized_the_model_is_plain_again(arch: str) -> None:
    model, plain = with_codes(tiny(arch)), tiny(arch)
    before = logits(model, inputs(arch))
    assert dequantize(model) is model
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    torch.testing.assert_close(logits(model, inputs(arch)), before)
    fw.attach(model, fw.Full())
    fw.detach(model)


def test_dequantized_under_an_adapter() -> None:
    model = fw.attach(with_codes(tiny("llama")), fw.LoRA(rank=2, targets="linear"))
    before = logits(model, inputs("llama"))
    dequantize(model)
    torch.testing.assert_close(logits(model, inputs("llama")), before)
    assert not quantized_modules(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora" in n
    }


@pytest.mark.parametrize("arch", ARCHS)
def test_counted_as_what_they_stand_for(arch: str) -> None:
    plain, model = tiny(arch), with_codes(tiny(arch))
    fw.attach(model, fw.LoRA(rank=2))
    fw.attach(plain, fw.LoRA(rank=2))
    there, here = fw.trainable(plain), fw.trainable(model)
    assert (here.trainable, here.total) == (there.trainable, there.total)
    held = quantized_modules(model).values()
    assert here.codes == sum(m.shape[0] * m.shape[1] for m in held)
    assert here.code_bytes == sum(t.nbytes for m in held for t in m.packed.values())
    assert f"as codes: {here.codes:,} in {here.code_bytes:,} bytes" in repr(here)
    assert "codes" not in repr(there)


def broken(change: Any) -> tuple[Any, dict[str, Tensor]]:
    model = nn.Sequential(coded(layer(6, 48)))
    state = {k: t.clone() for k, t in model.state_dict().items()}
    change(state)
    return model, state


# what is done to the state -> what is said of it
BAD: dict[str, tuple[Any, str]] = {
    "short": (
        lambda s: s.update({"0.codes": s["0.codes"][:-1]}),
        r"0\.codes: not what NF4\(\) stores for \(6, 48\); expected torch.uint8 \(144,\); got torch.uint8 \(143,\)",
    ),
    "dtype": (
        lambda s: s.update({"0.codes": s["0.codes"].float()}),
        r"0\.codes.*expected torch.uint8.*got torch.float32",
    ),
    "nan": (
        lambda s: s["0.absmax"].__setitem__(1, float("nan")),
        r"0\.absmax: 1 of 5 values are not finite",
    ),
    "scheme": (
        lambda s: s.update({"0.scheme": note(s, type="fp4")}),
        r"0\.scheme: codes of another scheme.*'nf4'.*'fp4'",
    ),
    "block": (
        lambda s: s.update({"0.scheme": note(s, block=32)}),
        r"codes of another scheme.*'block': 64.*'block': 32",
    ),
    "turned": (
        lambda s: s.update({"0.scheme": note(s, shape=[48, 6])}),
        r"another scheme.*\[6, 48\].*\[48, 6\]",
    ),
    "note": (
        lambda s: s.update({"0.scheme": s["0.scheme"][:9]}),
        r"0\.scheme: cannot be read; expected JSON",
    ),
    "float": (
        lambda s: s.update({"0.weight": torch.zeros(6, 48)}),
        r"the module keeps codes.*0\.weight, a tensor in floating point.*dequantize",
    ),
    "missing": (
        lambda s: s.pop("0.absmax"),
        r"0\.absmax: missing packed tensor of NF4\(\)",
    ),
    "extra": (
        lambda s: s.update({"0.zeros": torch.zeros(1)}),
        r"Unexpected key.*0\.zeros",
    ),
}


def note(state: dict[str, Tensor], **other: Any) -> Tensor:
    import json

    text = json.dumps(json.loads(bytes(state["0.scheme"].tolist())) | other)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_state_dict_is_refused(name: str) -> None:
    change, message = BAD[name]
    model, state = broken(change)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        model.load_state_dict(state)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items() if name != "extra")


def test_codes_that_do_not_fit_are_refused_all_at_once() -> None:
    module = layer(6, 48)
    packed = {"codes": torch.zeros(3, dtype=torch.uint8), "scales": torch.zeros(5)}
    with pytest.raises(fw.InputError) as error:
        become_quantized(module, NF4(), packed)
    assert len(error.value.problems) == 3
    assert type(module) is nn.Linear
    assert module.weight.shape == (6, 48)


def test_a_state_may_be_assigned_to_modules_without_memory() -> None:
    state = nn.Sequential(coded(layer(6, 48))).state_dict()
    model = nn.Sequential(coded(layer(6, 48))).to("meta")
    model.load_state_dict(state, assign=True)
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())


def test_qlora_is_its_equations_5_and_6() -> None:
    """Y = X doubleDequant(c1, c2, W) + s X L1 L2 in bfloat16; doubleDequant is dequant over dequantized constants."""
    plain = layer(48, 128, bias=False, dtype=torch.bfloat16)
    model = nn.Sequential(coded(plain, NF4(double=True)))
    fw.attach(model, fw.LoRA(rank=4, targets=".*"))
    disturb(model)
    held, adapter = model[0].packed, model[0].adapters["default"]
    kinds = {k: str(t.dtype).removeprefix("torch.") for k, t in held.items()}
    assert kinds == {"codes": "uint8", "absmax": "uint8", "nested_absmax": "float32", "nested_offset": "float32"}
    constants = dynamic_map()[held["absmax"].long()] * held["nested_absmax"][0] + held["nested_offset"]
    nibbles = torch.stack((held["codes"] >> 4, held["codes"] & 15), 1).flatten().long()
    W = (torch.tensor(NF4_VALUES)[nibbles].view(-1, 64) * constants[:, None]).view(48, 128).bfloat16()
    assert torch.equal(model[0].weight, W)
    x = torch.randn(6, 128, dtype=torch.bfloat16)
    low = adapter.scale * x.float() @ adapter.lora_A.weight.T.float() @ adapter.lora_B.weight.T.float()
    torch.testing.assert_close(model(x).float(), x.float() @ W.float().T + low, rtol=3e-2, atol=3e-2)
    assert model(x).dtype is torch.bfloat16


def dynamic_map() -> Tensor:
    """The signed 8-bit map of Dettmers, by its rule: midpoints of 2^i cells of [.1, 1] times 10^(i - 6), 0 and 1."""
    edges = [torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float64) for i in range(7)]
    half = torch.cat([(e[1:] + e[:-1]) / 2 * 10.0 ** (i - 6) for i, e in enumerate(edges)])
    return torch.cat([-half, half, torch.tensor([0.0, 1.0])]).sort().values.float()


NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def test_one_row_alone() -> None:
    """An input without a batch, its gradients and the bias's."""
    module, x = coded(layer(5, 48)), torch.randn(48, requires_grad=True)
    dx, db = torch.autograd.grad(module(x).sum(), (x, module.bias))
    torch.testing.assert_close(dx, module.weight.sum(0))
    assert torch.equal(db, torch.ones(5))


def test_no_float_weight_stays_behind() -> None:
    """Quantized under an adapter the old weights are free: the switch, which froze them, lets go."""
    model = fw.attach(tiny("llama"), fw.LoRA(rank=2))
    old = weakref.ref(model.model.layers[0].mlp.up_proj.weight)
    fw.quantize(model, NF4())
    gc.collect()
    assert old() is None


def test_attaching_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and dtypes are known without."""
    model = with_codes(tiny("gpt2"))
    with monkeypatch.context() as patch:
        patch.setattr(NF4, "decode", lambda *_: pytest.fail("decoded"))
        fw.attach(model, fw.LoRA(rank=2, targets="mlp"))
        fw.trainable(model)
        fw.attach(model, fw.Houlsby(), "other")


def test_its_weight_cannot_be_set() -> None:
    module = coded(layer(6, 48))
    with pytest.raises(fw.InputError, match=r"weight: cannot be set: it is kept as codes of NF4\(\)"):
        module.weight = nn.Parameter(torch.zeros(6, 48))
