"""AdapterFusion by hand: the equation, what trains, life with rows, stacks, saving and detaching."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import DECODERS, disturb, inputs, logits, tiny
from torch import Tensor, nn
from torch.nn import functional as F

import featherweight as fw
from featherweight.core.host import Host, base_parameters, hosts
from featherweight.core.state import adapters, state
from featherweight.methods.fusion import Mixed

BOTH = {
    "pfeiffer": (fw.Pfeiffer(bottleneck=4), fw.Pfeiffer(bottleneck=6, activation="gelu")),
    "houlsby": (fw.Houlsby(bottleneck=4, norms=False), fw.Houlsby(bottleneck=3, norms=False)),
    "parallel": (fw.Parallel(bottleneck=4), fw.Parallel(bottleneck=4, scale="learned")),
    "lin": (fw.Lin(bottleneck=4), fw.Lin(bottleneck=4)),
    "compacter": (fw.Compacter(bottleneck=8), fw.Compacter(bottleneck=4, shared_rule=False)),
}


def fused(arch: str, kind: str = "pfeiffer", moved: bool = True, **options: Any) -> Any:
    """Two trained adapters "x" and "y" and their fusion "f", the only one that is on."""
    model = tiny(arch)
    torch.manual_seed(0)
    for i, (name, method) in enumerate(zip("xy", BOTH[kind], strict=True)):
        fw.attach(model, method, name, head=False)
        disturb(model, 0.3, i)
    fw.attach(model, fw.Fusion(of=("x", "y"), **options), "f", head=False)
    if moved:
        disturb(model, 0.2, 9)
    return model


@pytest.mark.parametrize("kind", list(BOTH))
@pytest.mark.parametrize("arch", ["bert", "opt", "t5"])
def test_one_place_by_hand(arch: str, kind: str) -> None:
    """Σ softmax((Q q + b)ᵀ(K gᵢ + b)) V gᵢ, in the attention that torch itself has."""
    model = fused(arch, kind)
    mixed = next(a for a in adapters(model, "f").values() if isinstance(a, Mixed))
    host: Any = next(h for _, h in hosts(model) if "f" in h.adapters and h.adapters["f"] is mixed)
    x = torch.randn(2, 5, 32)
    g = torch.stack([host.adapters[n].change(x) for n in "xy"], -2)  # (2, 5, 2, 32)
    expected = F.scaled_dot_product_attention(mixed.query(x).unsqueeze(-2), mixed.key(g), mixed.value(g), scale=1.0)
    torch.testing.assert_close(mixed.mix(x, list(g.unbind(-2))), expected.squeeze(-2), atol=1e-5, rtol=1e-5)


def test_the_start_is_the_mean_of_the_adapters_and_a_sharp_key_picks_one() -> None:
    model = fused("gpt2", "houlsby", moved=False)
    alike = fused("gpt2", "houlsby", moved=False)
    with torch.no_grad():
        for a in adapters(alike, "f").values():
            a.query.weight.zero_()
    host: Any = model.transformer.h[0].mlp.c_proj
    x = torch.randn(2, 5, 128)
    with torch.no_grad():
        plain = host.frozen_class.forward(host, x)
        mean = plain + (host.adapters["x"].change(plain) + host.adapters["y"].change(plain)) / 2
        mine = alike.transformer.h[0].mlp.c_proj(x)
        torch.testing.assert_close(mine, mean, atol=1e-4, rtol=1e-4)  # V is 1e-6 beside the diagonal
        torch.testing.assert_close(host(x), mean, atol=0.3, rtol=0.3)


def test_an_adapter_fused_with_itself_is_itself() -> None:
    """Where both give the same, any weights give it back: V starts at the identity."""
    for arch in ("bert", "llama"):
        model = tiny(arch)
        for name in "xy":
            torch.manual_seed(0)
            fw.attach(model, BOTH["pfeiffer"][0], name, head=False)
            disturb(model, 0.3)
        alone = logits(model, inputs(arch))
        fw.attach(model, fw.Fusion(of=("x", "y")), "f", head=False)
        torch.testing.assert_close(logits(model, inputs(arch)), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", list(BOTH))
def test_only_the_fusion_learns(kind: str) -> None:
    model = fused("opt", kind)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    places = len([a for a in adapters(model, "f").values() if isinstance(a, Mixed)])
    assert all(".adapters.f." in k for k in trained)
    assert fw.trainable(model).trainable == places * (3 * 32 * 32 + 2 * 32)
    (model(**inputs("opt")).logits.square().sum() + fw.Fusion(of=("x", "y")).penalty(adapters(model, "f"))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    torch.optim.SGD(trained.values(), lr=0.01).step()
    changed = {k for k, p in model.named_parameters() if not torch.equal(before[k], p)}
    assert {k.split(".adapters.")[1].split(".")[0] for k in changed} == {"f"}
    assert all(p.grad is None for _, p in base_parameters(model))


def test_the_penalty_holds_the_values_at_the_identity() -> None:
    model = fused("bert", moved=False)
    method = fw.Fusion(of=("x", "y"), regularization=0.5)
    held = adapters(model, "f")
    assert float(method.penalty(held).detach()) < 1e-8  # type: ignore[union-attr]
    with torch.no_grad():
        for a in held.values():
            a.value.weight[0, 1] = 2.0
    assert float(method.penalty(held).detach()) == pytest.approx(0.5 * 2 * 4.0, rel=1e-5)  # type: ignore[union-attr]
    assert fw.Fusion(of=("x", "y"), regularization=0).penalty(held) is None


@pytest.mark.parametrize("kind", list(BOTH))
@pytest.mark.parametrize("arch", ["bert", "bart"])
def test_saved_alone_and_loaded_beside_what_it_fuses(arch: str, kind: str, tmp_path: Path) -> None:
    one = fused(arch, kind)
    for name in ("x", "y", "f"):
        fw.save(one, tmp_path / name, name=name)
    with pytest.raises(fw.InputError, match="no adapter of this name to fuse"):
        fw.load(tiny(arch), tmp_path / "f", "f")
    two = tiny(arch)
    for name in ("x", "y", "f"):
        fw.load(two, tmp_path / name, name)
    assert torch.equal(logits(one, inputs(arch)), logits(two, inputs(arch)))
    assert {k: t.shape for k, t in state(one, "f").items()} == {k: t.shape for k, t in state(two, "f").items()}


@pytest.mark.parametrize("kind", list(BOTH))
@pytest.mark.parametrize("arch", ["bert", "opt", "llama"])
def test_rows_equal_each_row_alone(arch: str, kind: str) -> None:
    model = fused(arch, kind)
    fw.attach(model, fw.LoRA(rank=2), "lora", head=False)
    disturb(model, 0.2, 5)
    rows = ["f", "x", None, "lora", "y", ("f", "lora")]
    ids = torch.randint(3, 99, (len(rows), 7), generator=torch.Generator().manual_seed(2))
    with fw.switch(model, rows=rows):
        together = logits(model, {"input_ids": ids})
    for i, row in enumerate(rows):
        with fw.switch(model, row):
            alone = logits(model, {"input_ids": ids[i : i + 1]})
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", DECODERS)
def test_the_cache_gives_what_the_whole_gives(arch: str) -> None:
    model, ids = fused(arch), inputs(arch)["input_ids"]
    whole, cache, steps = logits(model, {"input_ids": ids}), None, []
    with torch.no_grad():
        for t in range(ids.shape[1]):
            out = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)


def test_copies_compile_checkpoint_and_detach() -> None:
    model, batch = fused("gpt2"), inputs("gpt2")
    before, plain = logits(model, batch), logits(tiny("gpt2"), batch)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, batch), before)
        disturb(other)
        assert torch.equal(logits(model, batch), before)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch, use_cache=False).logits, before, atol=1e-5, rtol=1e-5)
    with pytest.raises(fw.NotMergeable, match="cannot be merged"):
        fw.merge(model)
    with fw.switch(model, None):
        assert torch.equal(logits(model, batch), plain)
    fw.detach(model, "f")
    fw.switch(model, "x")
    assert not torch.equal(logits(model, batch), before)
    fw.detach(model)
    assert torch.equal(logits(model, batch), plain)
    assert not [m for m in model.modules() if isinstance(m, Host)]


@pytest.mark.parametrize("kind", ["pfeiffer", "parallel"])
def test_gradient_checkpointing_gives_the_same_gradients(kind: str) -> None:
    grads: list[list[Tensor]] = []
    for checkpointing in (False, True):
        model = fused("opt", kind).train()
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(**inputs("opt")).logits.square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad and p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_fused_is_refused() -> None:
    model = tiny("bert")
    named = {
        "p": fw.Pfeiffer(bottleneck=4), "skip": fw.Pfeiffer(bottleneck=4, skip=1), "lora": fw.LoRA(rank=2),
        "h": fw.Houlsby(bottleneck=4, norms=False), "norms": fw.Houlsby(bottleneck=4),
    }  # fmt: skip
    for name, method in named.items():
        fw.attach(model, method, name, head=False)
    bad = {
        ("p", "pp"): "no adapter of this name to fuse.*did you mean 'p'",
        ("p",): "two or more",
        ("p", "p"): "two or more",
        (): "two or more",
        ("p", "skip"): "other places",
        ("p", "h"): "other places",
        ("h", "norms"): "norms=False",
        ("p", "lora"): "not made of bottlenecks",
    }
    for of, words in bad.items():
        with pytest.raises(fw.InputError, match=words):
            fw.attach(model, fw.Fusion(of=of), "f")
    assert "f" not in fw.core.switch.switch_of(model).attached


def test_detaching_a_fused_adapter_is_an_error_when_the_fusion_runs() -> None:
    model = fused("bert")
    fw.detach(model, "y")
    with pytest.raises(fw.InputError, match=r"fused here was detached.*'y'"):
        logits(model, inputs("bert"))
