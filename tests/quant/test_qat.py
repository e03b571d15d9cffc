"""Quantization-aware training: LSQ by hand and next to torch's, straight-through, and conversion bit for bit."""

import copy

import pytest
import torch
from support.models import disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.core.method import Method
from featherweight.quant import QuantLinear
from featherweight.quant.fake import RoundedRows, fake_quantize
from featherweight.quant.lsq import first_step, grid, lsq, packed_at

SCHEMES = [
    fw.Absmax(bits=8), fw.Absmax(bits=4), fw.Absmax(bits=4, per=64), fw.Absmax(bits=3, per="tensor"),
    fw.Absmax(bits=4, full_range=True), fw.Absmax(bits=4, clip=95.0), fw.Absmax(bits=4, clip="mse"),
    fw.ZeroPoint(bits=4), fw.ZeroPoint(bits=2, per=32, zero="float"), fw.NF4(), fw.NF4(double=True), fw.FP4(),
    fw.Blockwise(), fw.Half(), fw.LLMInt8(),
]  # fmt: skip
SHAPES = [(1, 1), (3, 5), (7, 48), (16, 96), (5, 112), (33, 160)]


def learned(x, step, bits, block):
    x, step = x.clone().requires_grad_(), step.clone().requires_grad_()
    return x, step, lsq(x, step, bits, block)


def test_lsq_by_hand():
    """3 bits, step 1/2: x / s = -6, -4, -2.2, 0.4, 0.6, 2.8, 3, 18 on the grid -4 .. 3."""
    x, step, y = learned(torch.tensor([-3.0, -2.0, -1.1, 0.2, 0.3, 1.4, 1.5, 9.0]), torch.tensor([0.5]), 3, 8)
    assert y.tolist() == [-2.0, -2.0, -1.0, 0.0, 0.5, 1.5, 1.5, 1.5]
    y.sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    terms = (-4, -4, 0.2, -0.4, 0.4, 0.2, 3, 3)
    assert float(step.grad) == pytest.approx(sum(terms) / (8 * 3) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq_is_torchs_but_for_half_a_step_at_the_ends(bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    torch.manual_seed(bits)
    v = torch.randn(16, 500) * 2**bits / 3
    v = v[:, ((v < low - 0.5) | (v > high + 0.5) | ((v > low) & (v < high))).all(0)]
    assert v.shape[1] > 20
    steps, g = torch.rand(16) + 0.1, torch.randn_like(v)
    x, step, y = learned(v * steps[:, None], steps, bits, v.shape[1])
    y.backward(g)
    z, theirs = x.detach().clone().requires_grad_(), steps.clone().requires_grad_()
    scale = 1 / (v.shape[1] * high) ** 0.5
    expected = torch._fake_quantize_learnable_per_channel_affine(z, theirs, torch.zeros(16), 0, low, high, scale)
    expected.backward(g)
    torch.testing.assert_close(y, expected)
    assert torch.equal(x.grad, z.grad)
    torch.testing.assert_close(step.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_lsq_begins_where_the_paper_says_and_finds_the_best_step():
    """N(0, 1) in 4 bits: 2 mean|x| / sqrt(7) = 0.603, with an error of 0.0303; the best step is 0.34, 0.0119."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    step = first_step(x, 4, x.numel()).requires_grad_()
    assert step.item() == pytest.approx(0.603, rel=0.01)
    assert (lsq(x, step, 4, x.numel()) - x).square().mean().item() == pytest.approx(0.0303, rel=0.02)
    optimizer = torch.optim.SGD([step], lr=400.0)
    for _ in range(60):
        optimizer.zero_grad()
        error = (lsq(x, step, 4, x.numel()) - x).square().mean()
        error.backward()
        optimizer.step()
    assert step.item() == pytest.approx(0.335, abs=0.02)
    assert error.item() == pytest.approx(0.0119, rel=0.03)


def test_steps_may_begin_where_the_error_is_least():
    """On the clipped grid of the scheme: nearer to N(0, 1) than LSQ's start, from which training goes on."""
    W = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    wide, least = (fw.QAT(scheme=fw.Absmax(bits=4, clip=c), learned_scale=True, targets="0") for c in (None, "mse"))
    errors = []
    for method in (wide, least):
        layer = torch.nn.Linear(256, 16)
        layer.weight.data.copy_(W)
        adapter = fw.attach(torch.nn.Sequential(layer), method)[0].adapters["default"]
        errors.append(float((adapter.rounded(W).detach() - W).square().mean()))
    assert errors[0] == pytest.approx(0.030, rel=0.1)
    assert errors[1] < 0.014


def test_a_block_of_zeros_begins_with_a_step_all_the_same():
    x = torch.cat([torch.zeros(4), torch.ones(4)])
    assert first_step(x, 4, 4).tolist() == pytest.approx([2 / 7**0.5] * 2)
    assert first_step(torch.zeros(8), 4, 4).tolist() == [1.0, 1.0]
    assert torch.equal(lsq(x, torch.zeros(2), 4, 4), torch.zeros(8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_fake_is_what_the_codes_decode_to(scheme, shape):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        W = torch.randn(shape).to(dtype)
        decoded = scheme.decode(scheme.encode(W), shape, dtype)
        assert torch.equal(fake_quantize(W, scheme, dtype), decoded)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if isinstance(s, fw.Absmax)], ids=repr)
def test_a_learned_grid_is_what_the_codes_decode_to(scheme, shape):
    torch.manual_seed(0)
    W, (bits, block) = torch.randn(shape), grid(scheme, shape)
    for factor in (0.3, 1.0, 2.0):
        step = first_step(W, bits, block) * factor
        packed = packed_at(scheme, W, step)
        assert {k: (t.dtype, tuple(t.shape)) for k, t in packed.items()} == scheme.layout(shape)
        assert torch.equal(lsq(W, step, bits, block), scheme.decode(packed, shape, torch.float32))


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_the_gradient_goes_straight_through_inside_the_range(scheme):
    W = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    W[0, 0] = 40.0
    W.requires_grad_()
    g = torch.randn(8, 64)
    fake_quantize(W, scheme, torch.float32).backward(g)
    if getattr(scheme, "clip", None) is None:
        assert torch.equal(W.grad, g)
        return
    ends = scheme.decode(scheme.encode(W), (8, 64), torch.float32).abs().amax(1, keepdim=True)
    inside = W.detach().abs() <= ends * (7.5 / 7)
    assert torch.equal(W.grad, torch.where(inside, g, 0.0))
    assert scheme.clip == "mse" or 8 <= (~inside).sum() < 40


def test_rounded_rows_are_their_own_absmax_grid():
    x = torch.tensor([[127.0, -63.4, 0.6], [0.0, 0.0, 0.0]], requires_grad=True)
    y = RoundedRows.apply(x, 8)
    assert y.tolist() == [[127.0, -63.0, 1.0], [0.0, 0.0, 0.0]]
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))


def weights(model):
    return {n: m.weight.detach().clone() for n, m in model.named_modules() if hasattr(m, "weight")}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("scheme", [fw.Absmax(bits=4), fw.NF4(block=32), fw.FP4(), fw.ZeroPoint(bits=3)], ids=repr)
def test_merged_and_quantized_is_the_model_in_training(arch, scheme):
    """Weights to the bit (an affine scale comes back within rounding only); sums run in another order."""
    model = fw.attach(tiny(arch), fw.QAT(scheme=scheme))
    disturb(model)
    before, other = logits(model, inputs(arch)), copy.deepcopy(model)
    plain = fw.merge(model)
    assert torch.equal(logits(plain, inputs(arch)), before)
    rounded = weights(plain)
    fw.quantize(plain, scheme)
    assert same(weights(fw.convert(other)), rounded)
    assert isinstance(scheme, fw.ZeroPoint) or same(weights(plain), rounded)
    torch.testing.assert_close(logits(other, inputs(arch)), before, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits(plain, inputs(arch)), before, rtol=1e-4, atol=1e-6)
    for name, module in plain.named_modules():
        assert type(other.get_submodule(name)) is type(module)
        if isinstance(module, QuantLinear):
            assert torch.equal(module.packed["codes"], other.get_submodule(name).packed["codes"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_learned_steps_are_converted_bit_for_bit(arch, dtype):
    method = fw.QAT(scheme=fw.Absmax(bits=4, per=16), learned_scale=True)
    model = fw.attach(tiny(arch, dtype), method)
    disturb(model)
    before, rounded = logits(model, inputs(arch)), weights(fw.merge(copy.deepcopy(model)))
    fw.convert(model)
    assert same(weights(model), rounded)
    close = {"rtol": 1e-4, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
    torch.testing.assert_close(logits(model, inputs(arch)), before, **close)
    assert any(isinstance(m, fw.quant.Quantized) for m in model.modules())


def test_a_model_in_training_keeps_what_it_learned():
    """Some steps on Llama's weights and steps: the loss falls on codes, and stays what it is when they are all left."""
    torch.manual_seed(0)
    model = fw.attach(tiny("llama"), fw.QAT(scheme=fw.Absmax(bits=2), learned_scale=True)).train()
    ids = torch.randint(3, 99, (4, 12))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        last = float(model(input_ids=ids, labels=ids).loss)
        kept = float(fw.convert(model)(input_ids=ids, labels=ids).loss)
    assert last < losses[0] - 0.5
    assert kept == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("scheme", [fw.Absmax(bits=3), fw.NF4()], ids=repr)
def test_lora_below_qat_trains_through_the_rounding_and_is_kept_whole(scheme):
    """The factors get the gradient of the rounded sum; what they are converted to is what they were trained as."""
    model = fw.attach(tiny("llama"), fw.LoRA(rank=4, targets="linear"), name="low")
    fw.attach(model, fw.QAT(scheme=scheme, weights=False), name="round", stack=True)
    learns = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert learns
    assert all("lora_" in n for n in learns)
    ids = torch.randint(3, 99, (4, 12), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(learns.values(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    before = logits(model, inputs("llama"))
    rounded = weights(fw.merge(copy.deepcopy(model)))
    fw.convert(model)
    assert same(weights(model), rounded)
    torch.testing.assert_close(logits(model, inputs("llama")), before, rtol=1e-4, atol=1e-5)


def test_what_convert_refuses():
    model = fw.attach(tiny("llama"), fw.LoRA(rank=2))
    with pytest.raises(fw.InputError, match="QAT is not on"):
        fw.convert(model)
    model = fw.attach(tiny("llama"), fw.QAT(), name="q")
    fw.attach(model, fw.LoRA(rank=2, targets="linear"), name="low", stack=True)
    with pytest.raises(fw.InputError, match="above it"):
        fw.convert(model)
    assert not any(isinstance(m, fw.quant.Quantized) for m in model.modules())


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_rounded_inputs_become_int8_products(arch, learned):
    """Training rounds in floats what the converted model multiplies in integers: the same sums, in another order."""
    method = fw.QAT(scheme=fw.Absmax(bits=8), activations=8, learned_scale=learned)
    model = fw.attach(tiny(arch), method)
    fw.prepare(model, [inputs(arch)])
    disturb(model, scale=0.02)
    before = logits(model, inputs(arch))
    with fw.switch(model, None):
        assert not torch.equal(logits(model, inputs(arch)), before)
    with pytest.raises(fw.NotMergeable):
        fw.merge(copy.deepcopy(model))
    fw.convert(model)
    kinds = {m.scheme.activations for m in model.modules() if isinstance(m, fw.quant.Quantized)}
    assert kinds == {"static" if learned else "dynamic"}
    assert float((logits(model, inputs(arch)) - before).abs().max() / before.abs().max()) < (2e-2 if learned else 1e-2)
    assert len(model.quantization_report.layers) == sum(isinstance(m, fw.quant.Quantized) for m in model.modules())


def test_inputs_without_an_integer_product_are_refused_and_nothing_is_touched():
    model = fw.attach(tiny("llama"), fw.QAT(scheme=fw.Absmax(bits=4), activations=8))
    before = logits(model, inputs("llama"))
    with pytest.raises(fw.InputError, match="no integer product"):
        fw.convert(model)
    assert torch.equal(logits(model, inputs("llama")), before)
    model = fw.attach(tiny("gpt2"), fw.QAT(targets=("query", "value")))
    with pytest.raises(fw.InputError, match="some rows of a fused projection"):
        fw.convert(model)
    model = fw.attach(tiny("llama"), fw.Houlsby(bottleneck=2), name="low")
    fw.attach(model, fw.QAT(scheme=fw.Absmax(), activations=8), name="q", stack=True)
    before = logits(model, inputs("llama"))
    with pytest.raises(fw.NotMergeable):
        fw.convert(model)
    assert torch.equal(logits(model, inputs("llama")), before)


def test_learned_input_steps_begin_at_the_first_batch():
    model = fw.attach(tiny("llama"), fw.QAT(activations=8, learned_scale=True))
    layer = model.model.layers[0].self_attn.q_proj
    start = layer.adapters["default"].input_step.item()
    assert start == pytest.approx(1.6 / 127**0.5)
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].abs().mean().item()))
    fw.prepare(model, [inputs("llama")])
    hook.remove()
    assert layer.adapters["default"].input_step.item() == pytest.approx(2 * seen[0] / 127**0.5, rel=1e-4)


def test_its_file_form_holds_the_scheme():
    method = fw.QAT(scheme=fw.NF4(double=True), targets=("query", "value"))
    form = {"type": "qat", "scheme": {"type": "nf4", "double": True}, "targets": ["query", "value"]}
    assert method.to_dict() == form
    assert Method.from_dict(form) == method
    assert Method.from_dict({"type": "qat", "scheme": "fp4"}) == fw.QAT(scheme=fw.FP4())
    assert repr(method) == "QAT(scheme=NF4(double=True), targets=('query', 'value'))"
    with pytest.raises(fw.InputError, match=r"scheme\.blokc.*\n?.*block"):
        Method.from_dict({"type": "qat", "scheme": {"type": "nf4", "blokc": 3}})


def test_bad_fields():
    with pytest.raises(fw.InputError, match="not a scheme"):
        fw.QAT(scheme="nf4")
    with pytest.raises(fw.InputError, match="no uniform grid"):
        fw.QAT(scheme=fw.NF4(), learned_scale=True)
    with pytest.raises(fw.InputError, match="fitted to data"):
        fw.QAT(scheme=fw.LLMInt8(keep=2))
    with pytest.raises(fw.InputError) as error:
        fw.QAT(learned_scale="yes", weights=3, activations=9)
    assert len(error.value.problems) == 3


@pytest.mark.parametrize("given", [
    {"scheme": "nf4", "scheme.double": "true"}, {"scheme": {"type": "nf4", "double": True}},
    {"scheme.type": "nf4", "scheme.double": True},
])  # fmt: skip
def test_flags_and_files_spell_its_scheme(given):
    from featherweight.cli.nouns import noun
    from featherweight.cli.schema import methods
    from featherweight.cli.value import Value

    def read(given):
        values = {f"method.{k}": Value(f"method.{k}", v, f"--method.{k}", isinstance(v, str)) for k, v in given.items()}
        problems = []
        return noun("method", methods, {"method.type": Value("method", "qat", "--method")} | values, problems), problems

    assert read(given) == (fw.QAT(scheme=fw.NF4(double=True)), [])
    made, problems = read(given | {"scheme.blokc": "3", "learned_scal": "true"})
    assert made is None
    assert {p.where for p in problems} >= {"--method.scheme.blokc", "--method.learned_scal"}


def test_a_run_with_qat_resumes_from_what_it_wrote(tmp_path):
    """`fw.save` and `fw.load` bring back the method with its scheme, and the same outputs."""
    model = fw.attach(tiny("llama"), fw.QAT(scheme=fw.Absmax(bits=4, per=16), learned_scale=True), head=False)
    disturb(model)
    fw.save(model, tmp_path)
    other = fw.load(tiny("llama"), tmp_path)
    assert torch.equal(logits(other, inputs("llama")), logits(model, inputs("llama")))
    fw.convert(other)
    assert any(isinstance(m, QuantLinear) for m in other.modules())
