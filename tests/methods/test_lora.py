"""LoRA by hand, against loralib, and its options."""

import math
from typing import Any

import loralib
import pytest
import torch
from support.models import disturb, tiny
from torch import nn

import featherweight as fw
from featherweight.core.host import hosts
from featherweight.core.state import adapters, state


def one(layer: nn.Module, method: fw.LoRA) -> Any:
    """Attach to a single layer and return its adapter."""
    fw.attach(nn.Sequential(layer), method)
    return layer.adapters["default"]


def test_by_hand() -> None:
    """W = 0, A = [1 2], B = [3; 4], s = 2/1: h = 2 · B (A x) = 2 · [3; 4] · (1·5 + 2·6) = [102; 136]."""
    layer = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    adapter = one(layer, fw.LoRA(rank=1, alpha=2, targets="0"))
    adapter.lora_A.weight.data = torch.tensor([[1.0, 2.0]])
    adapter.lora_B.weight.data = torch.tensor([[3.0], [4.0]])
    assert torch.equal(layer(torch.tensor([5.0, 6.0])), torch.tensor([102.0, 136.0]))


def oracle(kind: str) -> tuple[nn.Module, nn.Module, torch.Tensor, tuple[str, str]]:
    """(our frozen layer, loralib's layer, an input, the names of its A and B) with equal base weights."""
    torch.manual_seed(0)
    if kind == "linear":
        ours, theirs, x = (
            nn.Linear(6, 5),
            loralib.Linear(6, 5, r=2, lora_alpha=3, merge_weights=False),
            torch.randn(4, 6),
        )
    else:
        ours, theirs = nn.Embedding(7, 6), loralib.Embedding(7, 6, r=2, lora_alpha=3, merge_weights=False)
        x = torch.tensor([[1, 2, 6], [0, 0, 3]])
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours, theirs, x, ("lora_A", "lora_B")


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_equals_loralib_in_outputs_and_gradients(kind: str) -> None:
    ours, theirs, x, (a, b) = oracle(kind)
    adapter = one(ours, fw.LoRA(rank=2, alpha=3, targets="0"))
    nn.init.normal_(getattr(theirs, a))
    nn.init.normal_(getattr(theirs, b))
    mine = list(adapter.parameters())
    for p, q in zip(mine, (getattr(theirs, a), getattr(theirs, b)), strict=True):
        p.data.copy_(q)
    y, z = ours(x), theirs(x)
    torch.testing.assert_close(y, z, atol=1e-6, rtol=1e-6)
    y.square().sum().backward()
    z.square().sum().backward()
    for p, q in zip(mine, (getattr(theirs, a), getattr(theirs, b)), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-6)


def test_convolution_merges_to_its_equation() -> None:
    """Factors over kernels as in PEFT (loralib factors over (r·k, in·k)): judged by the weight that they merge to."""
    torch.manual_seed(0)
    ours, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 5)
    model = nn.Sequential(ours)
    before = ours.weight.clone()
    adapter = one(ours, fw.LoRA(rank=2, alpha=3, targets="0"))
    nn.init.normal_(adapter.lora_B.weight)
    on = model(x)
    delta = 1.5 * torch.einsum("or,rikl->oikl", adapter.lora_B.weight[:, :, 0, 0], adapter.lora_A.weight)
    fw.merge(model)
    torch.testing.assert_close(ours.weight, before + delta)
    torch.testing.assert_close(model(x), on, atol=1e-5, rtol=1e-5)


def test_strided_dilated_convolution_merges_and_grouped_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=2, padding_mode="reflect"))
    x = torch.randn(2, 3, 9, 9)
    fw.attach(model, fw.LoRA(rank=2, targets="0"))
    disturb(model)
    on = model(x)
    torch.testing.assert_close(fw.merge(model)(x), on, atol=1e-5, rtol=1e-5)
    with pytest.raises(fw.InputError, match=r"grouped convolution.*expected groups=1.*got 2"):
        fw.attach(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), fw.LoRA(rank=2, targets="0"))


def test_scales() -> None:
    assert one(nn.Linear(64, 64), fw.LoRA(rank=4, targets="0")).scale == 2.0
    assert one(nn.Linear(64, 64), fw.LoRA(rank=4, alpha=6, targets="0")).scale == 1.5
    assert one(nn.Linear(64, 64), fw.LoRA(rank=4, alpha=6, targets="0", rank_stabilized=True)).scale == 3.0


def test_inits() -> None:
    torch.manual_seed(0)
    kaiming = one(nn.Linear(400, 50), fw.LoRA(rank=40, targets="0")).lora_A.weight.detach()
    assert kaiming.abs().max() <= 1 / math.sqrt(400)
    assert kaiming.std() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)
    gaussian = one(nn.Linear(400, 50), fw.LoRA(rank=40, targets="0", init="gaussian")).lora_A.weight.detach()
    assert gaussian.std() == pytest.approx(1 / 40, rel=0.02)
    table = one(nn.Embedding(300, 50), fw.LoRA(rank=40, targets="0"))
    assert not table.lora_embedding_A.any()
    assert table.lora_embedding_B.detach().std() == pytest.approx(1, rel=0.05)


def test_patterns_give_other_ranks_and_alphas() -> None:
    method = fw.LoRA(rank=4, alpha=8, targets="attention", rank_pattern={r"layers.0.*": 2}, alpha_pattern={"v_proj": 1})
    model = fw.attach(tiny("llama"), method)
    ranks = {p: a.lora_A.weight.shape[0] for p, a in adapters(model, "default").items()}  # type: ignore[union-attr,operator]
    assert {r for p, r in ranks.items() if ".0." in p} == {2}
    assert {r for p, r in ranks.items() if ".1." in p} == {4}
    scales = {p: a.scale for p, a in adapters(model, "default").items()}
    assert scales["model.layers.0.self_attn.v_proj"] == 0.5
    assert scales["model.layers.1.self_attn.q_proj"] == 2.0


def test_dropout_acts_on_the_adapters_input_alone() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 8)
    x = torch.randn(512, 64)
    plain = layer(x)
    adapter = one(layer, fw.LoRA(rank=4, targets="0", dropout=0.5))
    layer.train()
    assert torch.equal(layer(x), plain), "B is zero: dropout must not reach the base"
    nn.init.normal_(adapter.lora_B.weight)
    layer.eval()
    exact = layer(x) - plain
    layer.train()
    noisy = torch.stack([layer(x) - plain for _ in range(200)])
    assert not torch.equal(noisy[0], noisy[1])
    assert (noisy.mean(0) - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_rank_beyond_the_matrix_is_refused_with_the_place() -> None:
    with pytest.raises(fw.InputError) as error:
        fw.attach(tiny("llama"), fw.LoRA(rank=20, targets=("query", "key")))
    assert "method.rank (2 places, the first model.layers.0.self_attn.k_proj): " in str(error.value)
    assert "expected 1 to 16, the smaller side of (16, 32); got 20" in str(error.value)


def test_slices_hold_their_own_factors() -> None:
    """The paper's LoRA on q and v of GPT-2: two independent pairs of factors, and the key rows never move."""
    model = fw.attach(tiny("gpt2"), fw.LoRA(rank=2))
    keys = [k for k in state(model, "default") if ".h.0." in k]
    assert keys == [f"transformer.h.0.attn.c_attn.{r}.lora_{m}.weight" for r in ("query", "value") for m in "AB"]
    disturb(model)
    host = dict(hosts(model))["transformer.h.0.attn.c_attn"]
    x = torch.randn(3, 32)
    with torch.no_grad():
        on = host(x)
        with fw.switch(model, None):
            off = host(x)
    assert torch.equal(on[:, 32:64], off[:, 32:64])
    assert not torch.isclose(on[:, :32], off[:, :32]).any()
    assert not torch.isclose(on[:, 64:], off[:, 64:]).any()


def test_repr_is_the_constructor_call_and_the_file_form_returns() -> None:
    method = fw.LoRA(rank=16, targets=("query", "up"), alpha_pattern={"q": 3.0})
    assert repr(method) == "LoRA(rank=16, targets=('query', 'up'), alpha_pattern={'q': 3.0})"
    assert eval(repr(method), {"LoRA": fw.LoRA}) == method
    assert type(method).from_dict(method.to_dict()) == method
    assert method.to_dict() == {"type": "lora", "rank": 16, "targets": ["query", "up"], "alpha_pattern": {"q": 3.0}}
    with pytest.raises(TypeError, match="no file form"):
        fw.LoRA(targets=lambda p, m: True).to_dict()
    with pytest.raises(fw.InputError) as error:
        type(method).from_dict({"type": "lora", "rnak": 3, "aplha": 1}, "method")
    assert "method.rnak" in str(error.value)
    assert "did you mean 'rank'?" in str(error.value)
    assert "did you mean 'alpha'?" in str(error.value)


def test_lora_fa_trains_b_alone() -> None:
    """r · out parameters per matrix; switching it off and on keeps A frozen."""
    model = fw.attach(tiny("llama"), fw.LoRA(rank=4, targets="attention", freeze_A=True), head=False)
    outs = [a.B.shape[0] for a in adapters(model, "default").values()]  # type: ignore[union-attr]
    assert fw.trainable(model).trainable == 4 * sum(outs)
    fw.switch(model, None)
    fw.switch(model, "default")
    assert {n.rsplit(".", 2)[-2] for n, p in model.named_parameters() if p.requires_grad} == {"lora_B"}


def rates(groups: list[dict[str, Any]], names: dict[int, str]) -> dict[str, float]:
    return {names[id(p)]: g["lr"] for g in groups for p in g["params"]}


def test_lora_plus_gives_b_a_higher_rate_as_peft_does() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    method = fw.LoRA(rank=4, targets="attention", lr_ratio=16)
    model = fw.attach(tiny("llama"), method, head=False)
    ours = rates(method.groups(adapters(model, "default"), 1e-4), {id(p): n for n, p in model.named_parameters()})
    theirs = get_peft_model(tiny("llama"), LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    made = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)
    peers = rates(made.param_groups, {id(p): n for n, p in theirs.named_parameters()})
    plain = {n.removeprefix("base_model.model.").replace(".default.", "."): lr for n, lr in peers.items()}
    assert {n.replace(".adapters.default.", "."): lr for n, lr in ours.items()} == plain
    assert sorted(set(ours.values())) == pytest.approx([1e-4, 16e-4])


def test_lora_plus_leaves_embeddings_magnitudes_and_heads_at_the_plain_rate() -> None:
    method = fw.DoRA(rank=4, targets=("embedding", "query"), lr_ratio=4)
    model = fw.attach(tiny("bert"), method)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = method.groups(adapters(model, "default"), 1e-3)
    found = rates(groups, names)
    assert {n.rsplit(".", 2)[-2] for n, lr in found.items() if lr == 4e-3} == {"lora_B"}
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    assert any("classifier" in n for n, lr in found.items() if lr == 1e-3)
    decayed = {names[id(p)].rpartition(".")[2] for g in groups if g.get("weight_decay") != 0 for p in g["params"]}
    assert "magnitude" not in decayed


def test_a_pattern_of_rank_0_leaves_a_place_out_and_a_slice_has_a_name() -> None:
    method = fw.LoRA(rank=4, rank_pattern={"h.0.attn.c_attn.query": 2, "h.1.*": 0})
    model = fw.attach(tiny("gpt2"), method)
    found = {k: t.shape[0] for k, t in state(model, "default").items() if "lora_A" in k}
    stem = "transformer.h.0.attn.c_attn."
    assert found == {f"{stem}query.lora_A.weight": 2, f"{stem}value.lora_A.weight": 4}
    with pytest.raises(fw.InputError, match="hits nothing"):
        fw.attach(tiny("gpt2"), fw.LoRA(rank_pattern={".*": 0}))
