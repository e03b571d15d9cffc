"""DoRA by hand, its options, and what its norms are taken of."""

import copy
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.state import adapters
from featherweight.methods.dora import Decomposed


def one(layer: nn.Module, method: fw.DoRA) -> Any:
    fw.attach(nn.Sequential(layer), method)
    return layer.adapters["default"]


def test_by_hand() -> None:
    """W = [[3, 0], [0, 1]], s B A = [[0, 4], [0, 0]], m = [10, 1]: rows [3, 4]/5 · 10 and [0, 1]."""
    layer = nn.Linear(2, 2)
    layer.weight.data, layer.bias.data = torch.tensor([[3.0, 0], [0, 1]]), torch.tensor([1.0, 2])
    adapter = one(layer, fw.DoRA(rank=1, alpha=2, targets="0"))
    assert torch.equal(adapter.magnitude, torch.tensor([3.0, 1]))
    adapter.lora_A.weight.data, adapter.lora_B.weight.data = torch.tensor([[0.0, 2]]), torch.tensor([[1.0], [0]])
    adapter.magnitude.data = torch.tensor([10.0, 1])
    torch.testing.assert_close(layer(torch.tensor([[1.0, 1]])), torch.tensor([[15.0, 3]]))
    torch.testing.assert_close(adapter.merge({"weight": layer.weight})["weight"], torch.tensor([[6.0, 8], [0, 1]]))


def test_the_norm_is_a_constant_in_the_backward_pass() -> None:
    """d/dm is x's product with the unit row; A and B get LoRA's gradients times c, with no term for the norm."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).double()
    adapter = one(layer, fw.DoRA(rank=2, alpha=4, targets="0"))
    nn.init.normal_(adapter.B)
    x, g = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    (layer(x) * g).sum().backward()
    V = (layer.weight + 2 * adapter.B @ adapter.A).detach()
    c = adapter.magnitude.detach() / V.norm(dim=1)
    torch.testing.assert_close(adapter.magnitude.grad, ((x @ V.T) * g).sum(0) / V.norm(dim=1))
    torch.testing.assert_close(adapter.B.grad, 2 * (g * c).T @ (x @ adapter.A.detach().T))
    torch.testing.assert_close(adapter.A.grad, 2 * ((g * c) @ adapter.B.detach()).T @ x)


def kinds() -> list[Any]:
    torch.manual_seed(0)
    return [
        (nn.Linear(6, 5), torch.randn(3, 6)), (nn.Conv2d(3, 4, 3, padding=1, stride=2), torch.randn(2, 3, 5, 5)),
        (nn.Embedding(9, 6, padding_idx=0), torch.tensor([[1, 2, 0]])),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("which", range(3), ids=["linear", "conv", "embedding"])
def test_starts_as_the_identity_bit_for_bit(which: int, dtype: torch.dtype) -> None:
    layer, x = kinds()[which]
    layer = layer.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    before, W = layer(x), layer.weight.detach().clone()
    adapter = one(layer, fw.DoRA(rank=2, targets="0"))
    assert torch.equal(layer(x), before)
    assert torch.equal(adapter.merge({"weight": W})["weight"], W)


@pytest.mark.parametrize("which", range(3), ids=["linear", "conv", "embedding"])
def test_the_short_way_to_the_norm_is_the_norm(which: int) -> None:
    layer, _ = kinds()[which]
    adapter = one(layer.double(), fw.DoRA(rank=2, targets="0"))
    nn.init.normal_(adapter.A)
    nn.init.normal_(adapter.B)
    whole = adapter.matrix(layer.weight) + adapter.delta()
    torch.testing.assert_close(adapter.norms(layer.weight), whole.norm(dim=1), rtol=1e-12, atol=1e-12)


def test_a_changed_base_is_met_with_new_norms() -> None:
    """Also changed behind torch's back, through `.data`, where no version counts."""
    layer, x = kinds()[0]
    adapter = one(layer, fw.DoRA(rank=2, targets="0"))
    nn.init.normal_(adapter.B)
    for _ in range(2):
        layer.weight.data.copy_(torch.randn(5, 6))
        V = layer.weight + adapter.delta()
        wanted = x @ (adapter.magnitude / V.norm(dim=1))[:, None].mul(V).T + layer.bias
        torch.testing.assert_close(layer(x), wanted)


def through_data(p: nn.Parameter) -> None:
    p.data.mul_(1.5)


def new_data(p: nn.Parameter) -> None:
    p.data = p.data * 1.5


def there_and_back(p: nn.Parameter) -> None:
    """Of another precision and of this one again, mostly at the same place in memory."""
    p.data = p.data.half()
    p.data = p.data.float()


def one_value(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.view(-1)[7] += 1


def stepped(p: nn.Parameter) -> None:
    p.requires_grad_(True)
    p.grad = torch.ones_like(p)
    torch.optim.SGD([p], lr=0.1).step()


CHANGES = [through_data, new_data, there_and_back, one_value, stepped]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("which", ["W", "A", "B"])
def test_norms_are_kept_in_evaluation_and_never_met_again_after_a_change(change: Any, which: str) -> None:
    layer, _ = kinds()[0]
    adapter = one(layer, fw.DoRA(rank=2, targets="0")).eval()
    nn.init.normal_(adapter.B)
    with torch.inference_mode():
        first = adapter.norms(layer.weight)
    assert adapter.norms(layer.weight) is first
    assert not first.is_inference()
    change({"W": layer.weight, "A": adapter.A, "B": adapter.B}[which])
    second = adapter.norms(layer.weight)
    assert torch.equal(second, adapter.measured(layer.weight))
    assert not torch.equal(second, first)
    adapter.train()
    assert adapter.norms(layer.weight) is not adapter.norms(layer.weight)
    assert "norms" not in str(vars(adapter))


def test_a_weight_that_is_made_at_every_call_is_measured_at_every_call() -> None:
    layer, _ = kinds()[0]
    adapter = one(layer, fw.DoRA(rank=2, targets="0")).eval()
    made = layer.weight.detach().clone()
    assert adapter.norms(made) is not adapter.norms(made)
    assert adapter.norms(layer.weight) is adapter.norms(layer.weight)


def test_a_copy_in_evaluation_has_norms_of_its_own() -> None:
    layer, x = kinds()[0]
    one(layer, fw.DoRA(rank=2, targets="0"))
    first = layer.eval()(x)
    twin = copy.deepcopy(layer)
    disturb(twin)
    assert torch.equal(layer(x), first)
    assert not torch.allclose(twin(x), first)


def test_a_row_of_zeros_stays_one() -> None:
    """peft divides 0 by 0 here."""
    layer, x = kinds()[0]
    layer.weight.data[2] = 0
    before = layer(x)
    adapter = one(layer, fw.DoRA(rank=2, targets="0"))
    assert torch.equal(layer(x), before)
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())
    assert adapter.merge({"weight": layer.weight})["weight"].isfinite().all()


@pytest.mark.parametrize("size", [1e-25, 1e-15])
def test_a_row_that_has_all_but_vanished_is_taken_for_zeros(size: float) -> None:
    """Its square is 0 in float32, or its gradient would be divided by next to nothing."""
    layer, x = kinds()[0]
    layer.weight.data[2] = size
    before = layer(x)
    adapter = one(layer, fw.DoRA(rank=2, targets="0"))
    torch.testing.assert_close(layer(x), before, atol=1e-7, rtol=0)
    layer(x).sum().backward()
    assert adapter.magnitude.grad[2].abs() < 1


def test_over_another_adapter_the_direction_is_the_sums() -> None:
    layer, x = kinds()[0]
    model = nn.Sequential(layer)
    fw.attach(model, fw.LoRA(rank=2, targets="0"), "below")
    nn.init.normal_(layer.adapters["below"].B)
    fw.attach(model, fw.DoRA(rank=2, targets="0"), "above", stack=True)
    nn.init.normal_(layer.adapters["above"].B)
    top = layer.adapters["above"]
    V = layer.weight + layer.adapters["below"].delta() + top.delta()
    torch.testing.assert_close(model(x), x @ (top.magnitude / V.norm(dim=1))[:, None].mul(V).T + layer.bias)
    on = model(x)
    torch.testing.assert_close(fw.merge(model)(x), on, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("arch", "targets"), [("gpt2", "attention"), ("llama", "linear"), ("bert", "embedding")])
def test_counts_are_the_formula_and_pefts(arch: str, targets: Any) -> None:
    """Σ r(in + out) + out; peft adapts GPT-2's fused projection whole, with one A, ours has one for each of q, k, v."""
    model = fw.attach(tiny(arch), fw.DoRA(rank=4, targets=targets), head=False)
    made = [m for a in adapters(model, "default").values() for m in a.modules() if isinstance(m, Decomposed)]
    formula = sum(4 * (m.A.shape[1] + m.B.shape[0]) + m.B.shape[0] for m in made)
    assert fw.trainable(model).trainable == formula
    if arch == "llama":
        from peft import LoraConfig, get_peft_model

        theirs = get_peft_model(tiny(arch), LoraConfig(r=4, use_dora=True, target_modules="all-linear"))
        assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == formula


def test_rows_of_gpt2_beside_the_slices_never_move() -> None:
    model = fw.attach(tiny("gpt2"), fw.DoRA(rank=2))
    disturb(model)
    host = model.transformer.h[0].attn.c_attn
    x = torch.randn(3, 32)
    with torch.no_grad():
        on = host(x)
        with fw.switch(model, None):
            off = host(x)
    assert torch.equal(on[:, 32:64], off[:, 32:64])
    assert not torch.isclose(on[:, :32], off[:, :32]).any()


def test_its_name_and_fields() -> None:
    method = fw.DoRA(rank=16, init="pissa")
    assert repr(method) == "DoRA(rank=16, init='pissa')"
    assert method.to_dict() == {"type": "dora", "rank": 16, "init": "pissa"}
    assert fw.LoRA.from_dict(method.to_dict()) == method
    model = fw.attach(tiny("llama"), fw.DoRA(rank=2, freeze_A=True))
    trained = {n.rpartition("default.")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"magnitude", "lora_B.weight"}
    before = logits(tiny("llama"), inputs("llama"))
    assert torch.equal(logits(model, inputs("llama")), before)
