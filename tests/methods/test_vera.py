"""VeRA by hand, its counts, and the projections that all layers share."""

import copy
from typing import Any

import pytest
import torch
import transformers
from support.models import disturb, tiny

import featherweight as fw
from featherweight.core.state import adapters, state

SIZES = {
    "gpt2-medium": ("GPT2Model", {"n_embd": 1024, "n_layer": 24, "n_head": 16}, 1024, 98_304),
    "gpt2-large": ("GPT2Model", {"n_embd": 1280, "n_layer": 36, "n_head": 20}, 1024, 165_888),
    "roberta-base": ("RobertaModel", {}, 1024, 43_008),
    "roberta-large": (
        "RobertaModel",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        256,
        61_440,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_counts_of_the_paper(name: str) -> None:
    """Table 2 and 3 of the paper: query and value, heads apart."""
    kind, fields, rank, wanted = SIZES[name]
    config = getattr(transformers, kind.replace("Model", "Config"))(**fields)
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
        fw.attach(model, fw.VeRA(rank=rank))
    assert fw.trainable(model).trainable == wanted


def test_by_hand() -> None:
    """W = 0, A = [1 2; 3 4], B = [1 1; 0 2], λ_d = (1, 10), λ_b = (3, 5), x = (1, 1).

    A x = (3, 7), λ_d ⊙ = (3, 70), B · = (73, 140), λ_b ⊙ = (219, 700).
    """
    layer = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.zeros_(layer.weight)
    model = fw.attach(torch.nn.Sequential(layer), fw.VeRA(rank=2, targets="0"))
    v: Any = layer.adapters["default"]  # type: ignore[union-attr]
    A, B = v.shared.both()
    A.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    B.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    v.vera_lambda_d.data, v.vera_lambda_b.data = torch.tensor([1.0, 10.0]), torch.tensor([3.0, 5.0])
    x, wanted = torch.ones(2), torch.tensor([219.0, 700.0])
    assert torch.equal(layer(x), wanted)
    assert torch.equal(fw.merge(model)(x), wanted)


def test_the_projections_are_drawn_as_peft_draws_them() -> None:
    from peft import VeraConfig, get_peft_model

    model = fw.attach(tiny("llama"), fw.VeRA(rank=6, targets=("q_proj", "down_proj"), seed=11))
    theirs = get_peft_model(
        tiny("llama"), VeraConfig(r=6, target_modules=["q_proj", "down_proj"], projection_prng_key=11)
    )
    A, B = next(iter(adapters(model, "default").values())).shared.both()  # type: ignore[union-attr, operator]
    assert torch.equal(A, theirs.base_model.vera_A["default"])
    assert torch.equal(B, theirs.base_model.vera_B["default"])
    assert fw.trainable(model).trainable == theirs.get_nb_trainable_parameters()[0]


def test_the_projections_are_one_frozen_pair() -> None:
    """Through deepcopy and .to(dtype) too; in the state once; and no step moves them."""
    model = fw.attach(tiny("llama"), fw.VeRA(rank=4, targets="linear"))
    assert len([k for k in state(model, "default") if "vera_A" in k or "vera_B" in k]) == 2
    for other in (copy.deepcopy(model), copy.deepcopy(model).double()):
        pairs = {id(a.shared.both()[0]) for a in adapters(other, "default").values()}  # type: ignore[union-attr, operator]
        assert len(pairs) == 1
    disturb(model)
    before = {k: t.clone() for k, t in state(model, "default").items() if "vera_A" in k or "vera_B" in k}
    model(input_ids=torch.ones(1, 3).long()).logits.sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    assert all(torch.equal(t, state(model, "default")[k]) for k, t in before.items())


def test_bad_input() -> None:
    with pytest.raises(fw.InputError, match=r"(?s)method\.rank.*method\.dropout"):
        fw.attach(tiny("llama"), fw.VeRA(rank=0, dropout=1.0))
