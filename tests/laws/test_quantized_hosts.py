"""The laws of methods on bases that are kept as codes: every method, on Llama, GPT-2 (Conv1D, fused) and BERT."""

import copy
import hashlib
from typing import Any

import pytest
import torch
from support.applies import refusal
from support.cases import METHODS
from support.codes import quantized_modules, with_codes
from support.laws import CLOSE, attached, chance, far, same, trained
from support.models import inputs, logits, output, tiny
from torch import nn

import featherweight as fw
from featherweight.core.host import Host
from featherweight.quant import NF4, Absmax, Quantized
from featherweight.quant.quantized import become_quantized

ARCHS = ("llama", "gpt2", "bert")
SCHEMES = {"nf4": NF4(), "int8": Absmax(bits=8, per="row")}
# What trains copies of the weights themselves has nothing to train where there are only codes.
COPIES = ("full", "head-last1")


def cases(which: Any = lambda _: True) -> Any:
    """Every method on each base, with one of the schemes drawn for it; the other carries the `sweep` mark."""
    found = []
    for name, method in METHODS.items():
        for arch in [a for a in ARCHS if which(method) and name not in COPIES and not refusal(name, method, a)]:
            for scheme, it in SCHEMES.items():
                drawn = list(SCHEMES)[chance("scheme", name, arch) % len(SCHEMES)] == scheme
                marks = [] if drawn else [pytest.mark.sweep]
                found.append(pytest.param(method, arch, it, id=f"{name}-{arch}-{scheme}", marks=marks))
    return pytest.mark.parametrize(("method", "arch", "scheme"), found)


def based(method: Any, arch: str, scheme: Any, moved: bool = True) -> Any:
    """A quantized model with the method on it."""
    return attached(method, arch, to=with_codes(tiny(arch), scheme), moved=moved)


def codes(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for path, module in quantized_modules(model).items():
        for name, tensor in module.packed.items():
            digest.update(f"{path}.{name}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@cases()
def test_the_start(method: Any, arch: str, scheme: Any) -> None:
    """The identity as on any base, but for the order in which products on codes are summed: fewer rows, an adapter's
    term and a weight that was decoded to be rewritten each have their own.
    """
    before = logits(with_codes(tiny(arch), scheme), inputs(arch))
    after = logits(based(method, arch, scheme, moved=False), inputs(arch))
    assert after.isfinite().all()
    if method.identity:
        assert far(after, before) <= max(method.near, CLOSE[torch.float32])


@cases()
def test_only_the_adapter_learns(method: Any, arch: str, scheme: Any) -> None:
    """A step moves the adapter and no code."""
    model = based(method, arch, scheme)
    learns, before = trained(model), codes(model)
    assert learns
    assert all("adapters" in k for k in learns)
    output(model, inputs(arch)).square().sum().backward()
    assert not [k for k, p in learns.items() if p.grad is None or not p.grad.isfinite().all()]
    kept = {k: p.detach().clone() for k, p in learns.items()}
    torch.optim.SGD(learns.values(), lr=0.1).step()
    assert any(not torch.equal(kept[k], p) for k, p in learns.items())
    assert codes(model) == before
    assert quantized_modules(model)


@cases()
def test_its_gradients_are_those_over_the_decoded_weights(method: Any, arch: str, scheme: Any) -> None:
    grads = []
    for decoded in (False, True):
        torch.manual_seed(0)
        model = based(method, arch, scheme)
        if decoded:
            fw.dequantize(model)
        output(model, inputs(arch)).square().sum().backward()
        grads.append({k: p.grad for k, p in trained(model).items()})
    assert list(grads[0]) == list(grads[1])
    for k, g in grads[0].items():
        torch.testing.assert_close(g, grads[1][k], rtol=2e-4, atol=2e-5)


@cases(lambda m: m.mergeable)
def test_forward_is_merge_into_floating_point(method: Any, arch: str, scheme: Any) -> None:
    model = based(method, arch, scheme)
    before, kept = logits(model, inputs(arch)), codes(model)
    with fw.merged(model):
        assert far(logits(model, inputs(arch)), before) <= CLOSE[torch.float32]
    assert codes(model) == kept
    assert torch.equal(logits(model, inputs(arch)), before)
    fw.merge(model)
    assert far(logits(model, inputs(arch)), before) <= CLOSE[torch.float32]
    assert not [m for m in model.modules() if isinstance(m, Host)]


@cases()
def test_switched_off_and_detached_the_base_is_back_bit_for_bit(method: Any, arch: str, scheme: Any) -> None:
    plain = with_codes(tiny(arch), scheme)
    model = based(method, arch, scheme)
    with fw.switch(model, None):
        assert torch.equal(logits(model, inputs(arch)), logits(plain, inputs(arch)))
    fw.detach(model)
    assert same(model.state_dict(), plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


@cases()
def test_saved_and_loaded_exactly(method: Any, arch: str, scheme: Any, tmp_path: Any) -> None:
    one = based(method, arch, scheme)
    fw.save(one, tmp_path, name="a")
    two = fw.load(with_codes(tiny(arch), scheme), tmp_path, name="a")
    assert torch.equal(logits(one, inputs(arch)), logits(two, inputs(arch)))
    assert codes(one) == codes(two)


@cases()
def test_a_deepcopy_is_independent(method: Any, arch: str, scheme: Any) -> None:
    model = based(method, arch, scheme)
    before, other = logits(model, inputs(arch)), copy.deepcopy(model)
    assert torch.equal(logits(other, inputs(arch)), before)
    for module in quantized_modules(other).values():
        for tensor in module.packed.values():
            tensor.zero_()
    assert torch.equal(logits(model, inputs(arch)), before)


@cases(lambda m: m.per_row)
def test_rows_equal_each_row_alone(method: Any, arch: str, scheme: Any) -> None:
    model = based(method, arch, scheme)
    attached(METHODS["lora"], arch, name="b", to=model, head=False)
    batch, names = inputs(arch, rows=3), ["a", None, "b"]
    alone = []
    for i, name in enumerate(names):
        fw.switch(model, name)
        alone.append(logits(model, {k: v[i : i + 1] for k, v in batch.items()}))
    fw.switch(model, rows=names)
    assert far(logits(model, batch), torch.cat(alone)) <= CLOSE[torch.float32]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", COPIES)
def test_copies_of_codes_are_refused_and_the_model_is_untouched(name: str, arch: str) -> None:
    model = with_codes(tiny(arch))
    kept = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(fw.InputError) as error:
        fw.attach(model, METHODS[name])
    (problem,) = error.value.problems
    assert problem.what == "its weight cannot be trained: kept as codes of NF4()"
    assert next(p for p in quantized_modules(model) if name == "full" or ".1." in p) in problem.where
    assert "fw.dequantize(model)" in problem.fix
    assert same(kept, model.state_dict())
    assert not [m for m in model.modules() if isinstance(m, Host)]
    fw.attach(fw.dequantize(model), METHODS[name])
    assert not [m for m in model.modules() if isinstance(m, Quantized)]


ON_TABLES = ("lora-embedding-attention", "dora-linear-rs", "tokens", "prompt")
TABLES = [(n, a) for n in ON_TABLES for a in ("gpt2", "gemma", "llama") if not refusal(n, METHODS[n], a)]


@pytest.mark.parametrize(("name", "arch"), TABLES)
def test_adapters_on_a_table_of_codes(name: str, arch: str) -> None:
    """A quantized embedding, its codes shared with the head where that is tied: forward ≡ over decoded ≡ merged."""
    model = with_codes(tiny(arch))
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    packed = NF4().encode(table.weight)
    for module in (table, head) if head.weight is table.weight else (table,):
        become_quantized(module, NF4(), packed)
    attached(METHODS[name], arch, to=model)
    before = logits(model, inputs(arch))
    decoded = fw.dequantize(copy.deepcopy(model))
    assert far(logits(decoded, inputs(arch)), before) <= CLOSE[torch.float32]
    output(model, inputs(arch)).square().sum().backward()
    output(decoded, inputs(arch)).square().sum().backward()
    for (k, p), q in zip(trained(model).items(), trained(decoded).values(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=2e-4, atol=2e-4, msg=k)
    if METHODS[name].mergeable:
        assert far(logits(fw.merge(model), inputs(arch)), before) <= CLOSE[torch.float32]
