"""The laws, run for every method on every architecture. A trait decides where a law holds; nothing is skipped."""

import copy
import pickle
from typing import Any

import pytest
import torch
from support.applies import refusal
from support.cases import METHODS
from support.laws import CLOSE, attached, chance, far, law, same, trained
from support.models import EVERY, disturb, inputs, logits, output, tiny
from torch import nn
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.core.adapter import Replace
from featherweight.core.host import Host, base_modules, base_parameters, hosts
from featherweight.core.part import Parts
from featherweight.core.state import load_state, state
from featherweight.core.switch import switch_of


@law()
def test_the_start(method: Any, arch: str, dtype: torch.dtype) -> None:
    """The identity where the method says so, to the bit or as near as it says; and outputs have the input's length."""
    before = logits(tiny(arch, dtype), inputs(arch))
    after = logits(attached(method, arch, dtype, moved=False), inputs(arch))
    assert after.shape == before.shape
    assert after.isfinite().all()
    if not method.identity:  # two bfloat16 numbers a row may round 8 bits' small change away; float32 tells
        assert dtype is torch.bfloat16 or not torch.equal(after, before), "it is the identity: declare it"
    elif not method.near:
        assert torch.equal(after, before)
    else:
        assert far(after, before) <= max(method.near, CLOSE[dtype])


@law()
def test_the_adapter_has_an_effect(method: Any, arch: str, dtype: torch.dtype) -> None:
    before = logits(tiny(arch, dtype), inputs(arch))
    after = logits(attached(method, arch, dtype), inputs(arch))
    assert after.shape == before.shape
    assert (after - before).abs().max() > 1e-4


@law()
def test_base_keys_class_and_signature_stay(method: Any, arch: str, dtype: torch.dtype) -> None:
    plain, model = tiny(arch, dtype), attached(method, arch, dtype)
    keys = model.state_dict()
    assert [k for k in keys if ".adapters." not in k and not k.startswith("adapters.")] == list(plain.state_dict())
    for (_, was), (_, now) in zip(base_modules(plain), base_modules(model), strict=True):
        assert isinstance(now, type(was))
        assert type(now).__name__ == type(was).__name__
        assert type(now).forward.__doc__ == type(was).forward.__doc__


@law()
def test_only_the_adapter_learns(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = attached(method, arch, dtype)
    base = {k: p.detach().clone() for k, p in base_parameters(model)}
    learns = trained(model)
    assert learns
    assert all("adapters" in k for k in learns)
    assert sum(p.numel() for p in learns.values()) == fw.trainable(model).trainable
    output(model, inputs(arch)).float().square().sum().backward()
    without = [k for k, p in learns.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    before = {k: p.detach().clone() for k, p in learns.items()}
    torch.optim.SGD(learns.values(), lr=0.1).step()
    assert any(not torch.equal(before[k], p) for k, p in learns.items())
    assert same(base, {k: p.detach() for k, p in base_parameters(model)})
    assert all(p.grad is None for _, p in base_parameters(model))


@law()
def test_forward_is_merge(method: Any, arch: str, dtype: torch.dtype) -> None:
    """Or, where nothing can be merged, an error that leaves the model as it was."""
    model = attached(method, arch, dtype)
    before = logits(model, inputs(arch))
    if not method.mergeable:
        unmerged(model, before, arch)
        return
    plain = fw.merge(model)
    assert not any(isinstance(m, Host) for m in plain.modules())
    merged = logits(plain, inputs(arch))
    assert far(merged, before) <= CLOSE[dtype] or (dtype is torch.bfloat16 and as_rounded(merged, before, model, arch))


def as_rounded(merged: torch.Tensor, before: torch.Tensor, model: nn.Module, arch: str) -> bool:
    """Some draws of large adapters amplify what 16 bits round away: then both are held to the model in float64."""
    exact = logits(model.double(), inputs(arch))
    return far(merged, exact) <= 2 * far(before, exact) < 0.5


def unmerged(model: nn.Module, before: torch.Tensor, arch: str) -> None:
    """Merging is refused, in words that name the adapter, before anything is touched."""
    kept = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(fw.NotMergeable, match=r"cannot be merged: .*a \("):
        fw.merge(model)
    with pytest.raises(fw.NotMergeable), fw.merged(model):
        pass
    assert same(kept, model.state_dict())
    assert torch.equal(logits(model, inputs(arch)), before)


@law(dtypes=False)
def test_forward_is_merge_stacked(method: Any, arch: str, dtype: torch.dtype) -> None:
    """Below and above others."""
    other = ("full", "norm", "lora-linear-rs", "ia3")[chance(repr(method), arch) % 4]
    if refusal(other, METHODS[other], arch):
        other = "norm"
    for below, above in ((method, METHODS[other]), (METHODS[other], method)):
        bottom, top = ("a", "b") if below is method else ("b", "a")
        model = attached(below, arch, name=bottom)
        attached(above, arch, name=top, to=model, stack=True, head=False)
        before = logits(model, inputs(arch))
        with fw.switch(model, top):
            assert hides(model, top) or far(logits(model, inputs(arch)), before) > 0
        if not method.mergeable:
            unmerged(model, before, arch)
            continue
        with fw.merged(model):
            merged = logits(model, inputs(arch))
        assert torch.equal(logits(model, inputs(arch)), before)
        for found in (merged, logits(fw.merge(copy.deepcopy(model)), inputs(arch))):
            assert far(found, before) <= CLOSE[dtype] or as_summed(found, before, model, arch)


def as_summed(merged: torch.Tensor, before: torch.Tensor, model: nn.Module, arch: str) -> bool:
    """T5 scales no scores, and two draws on it amplify what 32 bits round away (1.1e-5 and 1.8e-5): then the same fold
    is held to twelve digits, where nothing else can hide.
    """
    wide = copy.deepcopy(model).double()
    exact = logits(wide, inputs(arch))
    return far(merged, before) <= 3e-5 and far(logits(fw.merge(wide), inputs(arch)), exact) <= 1e-12


def hides(model: nn.Module, top: str) -> bool:
    """Whether the adapter on top replaces every tensor of every host, so that nothing below it can show."""
    return all(whole(host.adapters._modules.get(top), host) for _, host in hosts(model))


def whole(adapter: nn.Module | None, host: nn.Module) -> bool:
    inner = adapter.of["whole"] if isinstance(adapter, Parts) and "whole" in adapter.of else adapter
    own = {n for n, p in host._parameters.items() if p is not None}
    return isinstance(inner, Replace) and own <= {n for n, _ in inner.named_parameters(recurse=False)}


@law()
def test_switched_off_and_detached_the_base_is_back_bit_for_bit(method: Any, arch: str, dtype: torch.dtype) -> None:
    plain, model = tiny(arch, dtype), tiny(arch, dtype)
    frozen = [k for k, p in model.named_parameters() if p.requires_grad][::3]
    for k, p in model.named_parameters():
        p.requires_grad_(k not in frozen)
    thawed = [k for k, p in model.named_parameters() if not p.requires_grad]
    attached(method, arch, dtype, to=model)
    on = logits(model, inputs(arch))
    if method.mergeable:
        with fw.merged(model):
            pass
        assert torch.equal(logits(model, inputs(arch)), on)
    with fw.switch(model, None):
        assert torch.equal(logits(model, inputs(arch)), logits(plain, inputs(arch)))
    assert torch.equal(logits(model, inputs(arch)), on)
    fw.detach(model)
    assert same(model.state_dict(), plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [k for k, p in model.named_parameters() if not p.requires_grad] == thawed
    assert not [m for m in model.modules() if "switch" in vars(m)]
    assert torch.equal(logits(model, inputs(arch)), logits(plain, inputs(arch)))


@law()
def test_state_loads_exactly(method: Any, arch: str, dtype: torch.dtype) -> None:
    one, two = attached(method, arch, dtype), attached(method, arch, dtype, moved=False)
    load_state(two, "a", state(one, "a"))
    assert same(state(one, "a"), state(two, "a"))
    assert torch.equal(logits(one, inputs(arch)), logits(two, inputs(arch)))


@law()
def test_saved_and_loaded_exactly(method: Any, arch: str, dtype: torch.dtype, tmp_path: Any) -> None:
    """What comes back computes the same; its method too, unless a plainer one was saved for use."""
    one = attached(method, arch, dtype)
    fw.save(one, tmp_path, name="a")
    two = fw.load(tiny(arch, dtype), tmp_path, name="b")
    assert torch.equal(logits(one, inputs(arch)), logits(two, inputs(arch)))
    assert not trained(two)
    fw.save(two, tmp_path / "again", name="b")
    three = fw.load(tiny(arch, dtype), tmp_path / "again", name="a")
    assert same(state(two, "b"), state(three, "a"))
    assert switch_of(three).attached["a"].method == switch_of(two).attached["b"].method


@law()
def test_deepcopy_and_pickle_are_independent(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = attached(method, arch, dtype)
    before = logits(model, inputs(arch))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, inputs(arch)), before)
        disturb(other, seed=9)
        fw.switch(other, None)
        assert torch.equal(logits(model, inputs(arch)), before)
        assert all(host.switch is next(hosts(other))[1].switch for _, host in hosts(other))


@law()
def test_every_host_is_called(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = attached(method, arch, dtype)
    called: set[str] = set()
    for path, host in hosts(model):
        host.register_forward_hook(lambda *_, path=path: called.add(path))
    logits(model, inputs(arch))
    tables = {p for p, m in hosts(model) if m is getattr(model, "get_input_embeddings", lambda: None)()}
    uncalled = {path for path, _ in hosts(model)} - called
    assert uncalled <= (tables if arch in ("t5", "bart") else set()), "the shared table is read through two others"


@law(dtypes=False, each=4)
def test_gradient_checkpointing_gives_the_same_gradients(method: Any, arch: str, dtype: torch.dtype) -> None:
    grads = []
    for recomputed in (False, True):
        model = attached(method, arch, dtype).train()
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        if recomputed and hasattr(model, "gradient_checkpointing_enable"):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        whole = recomputed and not hasattr(model, "gradient_checkpointing_enable")
        out = checkpoint(model, **inputs(arch), use_reentrant=False) if whole else output(model, inputs(arch))
        out.square().sum().backward()
        grads.append({k: p.grad for k, p in trained(model).items()})
    for k, g in grads[0].items():
        torch.testing.assert_close(grads[1][k], g, atol=1e-5, rtol=1e-4)


@law(dtypes=False)
def test_a_third_task_leaves_the_first_two_alone(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = tiny(arch)
    kept = {}
    for n, one in (("one", METHODS["lora"]), ("two", method)):
        attached(one, arch, name=n, to=model)
        kept[n] = logits(model, inputs(arch))
    attached(method, arch, name="three", to=model, moved=False)
    optimizer = torch.optim.AdamW(trained(model).values(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        output(model, inputs(arch)).square().mean().backward()
        optimizer.step()
    for n, before in kept.items():
        fw.switch(model, n)
        assert torch.equal(logits(model, inputs(arch)), before)


@pytest.mark.parametrize("arch", EVERY)
def test_refused_with_a_reason_and_untouched(arch: str) -> None:
    refused = [name for name, method in METHODS.items() if refusal(name, method, arch)]
    for name in refused:
        model, method = tiny(arch), METHODS[name]
        with pytest.raises(fw.InputError) as error:
            attached(method, arch, to=model)
        assert all(p.what and (p.fix or p.expected) for p in error.value.problems), name
        fw.detach(model)  # a method that starts from data is refused when it sees them
        assert not [m for m in model.modules() if isinstance(m, Host)], name
        assert same(model.state_dict(), tiny(arch).state_dict()), name
        assert all(p.requires_grad for p in model.parameters()) or arch in ("whisper",), name
