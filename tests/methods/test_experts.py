"""LoRA on experts: by hand, in the layouts that transformers has, counts, and what is refused."""

from typing import Any

import pytest
import torch
import transformers
from support.mixtures import MODELS, mixture
from support.models import disturb, inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.state import adapters, state


@pytest.mark.parametrize("kind", MODELS)
def test_starts_as_the_identity_learns_and_merges(kind: str) -> None:
    before = logits(mixture(kind), inputs("llama"))
    model = fw.attach(mixture(kind), fw.ExpertLoRA(rank=2))
    assert torch.equal(logits(model, inputs("llama")), before)
    names = {k.split(".of.")[1].split(".")[0] for k in state(model, "default")}
    assert names == {"gate_up_proj", "down_proj"}
    disturb(model)
    model(**inputs("llama")).logits.square().mean().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(grads) == 8
    assert all(g is not None and g.any() for g in grads)
    on = logits(model, inputs("llama"))
    assert (on - before).abs().max() > 1e-4
    torch.testing.assert_close(logits(fw.merge(model), inputs("llama")), on, atol=1e-6, rtol=1e-5)


class Two(nn.Module):
    """Two experts of a 1 × 2 weight each: y_e = W_e x."""

    def __init__(self, flipped: bool):
        super().__init__()
        self.is_transposed = flipped
        self.W = nn.Parameter(torch.zeros((2, 2, 1) if flipped else (2, 1, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("eio,i->eo" if self.is_transposed else "eoi,i->eo", self.W, x)


@pytest.mark.parametrize("flipped", [False, True])
def test_by_hand(flipped: bool) -> None:
    """Rank 2 on 2 experts, s = 3/2. A's rows are (expert, rank), B's columns (rank, expert), as PEFT has them.

    x = (1, 1): expert 0 has A x = (3, 7) with B (1, 3), so 24; expert 1 has A x = (11, 15) with B (2, 4), so 82.
    """
    model = nn.Sequential(Two(flipped))
    fw.attach(model, fw.ExpertLoRA(rank=2, alpha=3))
    pair: Any = adapters(model, "default")["0"].of["W"]  # type: ignore[union-attr]
    pair["lora_A"].weight.data = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]])
    pair["lora_B"].weight.data = torch.tensor([[1.0, 2, 3, 4]])
    wanted = torch.tensor([[36.0], [123.0]])
    assert torch.equal(model(torch.ones(2)), wanted)
    assert torch.equal(fw.merge(model)(torch.ones(2)), wanted)


def test_counts() -> None:
    """E r (in + out) for each tensor: Mixtral 8x7B at rank 8, on a model without storage."""
    config = transformers.MixtralConfig()
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
        fw.attach(model, fw.ExpertLoRA(rank=8))
        assert fw.trainable(model).trainable == 32 * 8 * 8 * ((4096 + 28672) + (14336 + 4096))
        fw.detach(model)
        fw.attach(model, fw.ExpertLoRA(rank=8, experts="down_proj"))
        assert fw.trainable(model).trainable == 32 * 8 * 8 * (14336 + 4096)


def test_other_layers_beside_the_experts() -> None:
    """One method, one adapter: patterns give each place its own rank, and an expert's tensor is a place."""
    ranks, alphas = {"experts.down_proj": 3, "q_proj": 1}, {r"layers\.0.*gate_up_proj": 1.0}
    method = fw.ExpertLoRA(rank=2, alpha=6, targets=("query", "value"), rank_pattern=ranks, alpha_pattern=alphas)
    model = fw.attach(mixture("mixtral"), method)
    held: Any = adapters(model, "default")
    assert len(held) == 6
    assert held["model.layers.0.self_attn.q_proj"].lora_A.weight.shape[0] == 1
    experts = held["model.layers.0.mlp.experts"]
    assert experts.ranks == {"gate_up_proj": 2, "down_proj": 3}
    assert experts.scales == {"gate_up_proj": 0.5, "down_proj": 2.0}
    disturb(model)
    on = logits(model, inputs("llama"))
    torch.testing.assert_close(logits(fw.merge(model), inputs("llama")), on, atol=1e-6, rtol=1e-5)


def test_stacks_on_lora_of_the_attention() -> None:
    model = fw.attach(mixture("mixtral"), fw.LoRA(rank=2, targets="attention"), "a")
    fw.attach(model, fw.ExpertLoRA(rank=2), "e", stack=True)
    disturb(model)
    on = logits(model, inputs("llama"))
    with fw.merged(model):
        torch.testing.assert_close(logits(model, inputs("llama")), on, atol=1e-6, rtol=1e-5)
    with fw.switch(model, "a"):
        assert not torch.equal(logits(model, inputs("llama")), on)


def test_rows_of_a_batch() -> None:
    """A module of experts sees tokens, not rows: neighbors belong to one row."""
    model = mixture("mixtral")
    for seed, name in enumerate(("x", "y")):
        fw.attach(model, fw.ExpertLoRA(rank=2), name)
        disturb(model, seed=seed)
    batch = {"input_ids": torch.randint(3, 99, (3, 5), generator=torch.Generator().manual_seed(4))}
    alone = []
    for i, name in enumerate(("x", None, "y")):
        with fw.switch(model, name):
            alone.append(logits(model, {"input_ids": batch["input_ids"][i : i + 1]}))
    with fw.switch(model, rows=["x", None, "y"]):
        torch.testing.assert_close(logits(model, batch), torch.cat(alone), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("model", "method", "says"), [
    ("llama", fw.ExpertLoRA(), r"finds no 3-d weights of experts in LlamaForCausalLM; use LoRA"),
    ("vit", fw.ExpertLoRA(), r"finds no 3-d weights of experts in ViT"),
    ("mixtral", fw.ExpertLoRA(experts=("down_prj", "experts")),
     r"'down_prj' matches none of the 3-d weights; expected .*; did you mean 'down_proj'"),
    ("mixtral", fw.ExpertLoRA(dropout=0.1, init="pissa"), r"(?s)method\.dropout: not to be had.*method\.init"),
    ("mixtral", fw.ExpertLoRA(rank=0), r"rank out of range; expected 1 or more"),
])  # fmt: skip
def test_refused(model: str, method: fw.ExpertLoRA, says: str) -> None:
    with pytest.raises(fw.InputError, match=says):
        fw.attach(mixture(model) if model in MODELS else tiny(model), method)
