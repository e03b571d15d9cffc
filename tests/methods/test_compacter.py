"""Compacter by hand: sums of Kronecker products, shared and own rules, counts."""

import copy
from typing import Any

import pytest
import torch
from support.models import EVERY, disturb, inputs, logits, tiny
from torch import Tensor
from torch.nn import functional as F

import featherweight as fw
from featherweight.core.host import hosts
from featherweight.core.state import adapters, load_state, state
from featherweight.methods.compacter import Kronecker


def kronecker_sum(rule: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Σᵢ Aᵢ ⊗ (Sᵢ Tᵢ) by torch's own kron, (in, out)."""
    return sum(torch.kron(A, S @ T) for A, S, T in zip(rule, left, right, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 3), (4, 1), (8, 2)])
def test_a_layer_is_a_sum_of_kronecker_products(n: int, rank: int) -> None:
    torch.manual_seed(0)
    method = fw.Compacter(n=n, rank=rank)
    layer = Kronecker(24, 16, method, torch.nn.Parameter(torch.randn(n, n, n)), {"dtype": torch.float64})
    layer.double()
    torch.nn.init.normal_(layer.b)
    x = torch.randn(3, 5, 24, dtype=torch.float64)
    expected = x @ kronecker_sum(layer.phm_rule, layer.W_left, layer.W_right) + layer.b
    torch.testing.assert_close(layer(x), expected)
    assert sum(p.numel() for p in layer.parameters()) == n**3 + rank * (24 + 16) + 16


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("plus", [True, False])
def test_the_equation_in_a_block(plus: bool, shared: bool) -> None:
    """GPT-2: behind the feed-forward's last layer (Compacter), or behind the block (++)."""
    torch.manual_seed(0)
    model = fw.attach(tiny("gpt2"), fw.Compacter(bottleneck=8, plus=plus, shared_rule=shared), "a", head=False)
    disturb(model, 0.5)
    path = "transformer.h.1" if plus else "transformer.h.1.mlp.c_proj"
    host: Any = model.get_submodule(path)
    down, up = host.adapters["a"].down, host.adapters["a"].up
    x = torch.randn(2, 5, 32 if plus else 128)
    out = host(x)
    fw.switch(model, None)
    before = host(x)
    out, before = (y[0] if isinstance(y, tuple) else y for y in (out, before))
    inner = F.gelu(before @ kronecker_sum(down.phm_rule, down.W_left, down.W_right) + down.b)
    expected = before + inner @ kronecker_sum(up.phm_rule, up.W_left, up.W_right) + up.b
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_a_shared_rule_is_one_tensor_counted_and_stored_once() -> None:
    model = tiny("bert")
    total = sum(p.numel() for p in model.parameters())
    fw.attach(model, fw.Compacter(bottleneck=8), "a", head=False)
    rules = {id(m.phm_rule) for _, h in hosts(model) for m in h.adapters["a"].modules() if isinstance(m, Kronecker)}
    assert len(rules) == 1
    per_place = (32 + 8) + 8 + (8 + 32) + 32
    counts = fw.trainable(model)
    assert (counts.trainable, counts.total) == (4 * per_place + 64, total + 4 * per_place + 64)
    assert [k for k in state(model, "a") if "phm_rule" in k] == [
        "bert.encoder.layer.0.attention.output.dense.down.phm_rule"
    ]
    other = copy.deepcopy(model)
    assert len({id(m.phm_rule) for m in other.modules() if isinstance(m, Kronecker)}) == 1
    own = fw.trainable(fw.attach(tiny("bert"), fw.Compacter(bottleneck=8, shared_rule=False), head=False)).trainable
    assert own == 4 * (per_place + 2 * 64)


def test_a_shared_rule_learns_from_every_place_and_loads_into_all() -> None:
    model = fw.attach(tiny("llama"), fw.Compacter(bottleneck=8), "a")
    disturb(model, 0.3)
    model(**inputs("llama")).logits.square().sum().backward()
    rule = next(m.phm_rule for m in model.modules() if isinstance(m, Kronecker))
    assert rule.grad is not None
    assert rule.grad.any()
    two = fw.attach(tiny("llama"), fw.Compacter(bottleneck=8), "a")
    load_state(two, "a", state(model, "a"))
    assert torch.equal(logits(two, inputs("llama")), logits(model, inputs("llama")))


@pytest.mark.parametrize("arch", EVERY)
def test_counts(arch: str) -> None:
    """ρ(in + out) + out per matrix and n³ once, or per matrix."""
    d, b, n, rank = 32, 8, 4, 2
    places = 8 if arch in ("t5", "bart", "whisper") else 4
    per_place = 2 * rank * (d + b) + b + d

    def count(**options: Any) -> int:
        method = fw.Compacter(bottleneck=b, n=n, rank=rank, **options)
        return fw.trainable(fw.attach(tiny(arch), method, head=False)).trainable

    assert count() == places * per_place + n**3
    assert count(shared_rule=False) == places * (per_place + 2 * n**3)
    if arch != "unet":
        assert count(plus=True) == places // 2 * per_place + n**3


def test_norms_train_beside_the_bottlenecks_if_asked_to() -> None:
    plain, with_norms = (
        fw.attach(tiny("bert"), fw.Compacter(reduction=4, norms=n), "a", head=False) for n in (False, True)
    )
    assert fw.trainable(with_norms).trainable == fw.trainable(plain).trainable + 2 * 2 * 2 * 32
    assert {p for p in adapters(with_norms, "a") if p not in adapters(plain, "a")} == {
        f"bert.encoder.layer.{i}.{at}output.LayerNorm" for i in (0, 1) for at in ("attention.", "")
    }


def test_n_must_divide() -> None:
    for method in (fw.Compacter(n=3), fw.Compacter(n=4, bottleneck=6), fw.Compacter(n=0), fw.Compacter(reduction=32)):
        with pytest.raises(fw.InputError, match="n must divide"):
            fw.attach(tiny("bert"), method)
    with pytest.raises(fw.InputError, match="rank"):
        fw.attach(tiny("bert"), fw.Compacter(reduction=4, rank=0))
