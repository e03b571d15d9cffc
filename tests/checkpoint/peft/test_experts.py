"""LORA files on `target_parameters`, both ways, on every layout of experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.mixtures import MODELS, mixture
from support.models import disturb, inputs, logits

import featherweight as fw
from featherweight.checkpoint.files import WEIGHTS

Judge = Callable[[Any, Path], Any]
# said of every pattern that means a tensor, though peft heeds it
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", [
    fw.ExpertLoRA(rank=2), fw.ExpertLoRA(rank=3, alpha=4, experts="down_proj", rank_stabilized=True),
    fw.ExpertLoRA(rank=2, alpha=3, targets=("query", "down|o_proj"), rank_pattern={"experts.down_proj": 3, "q_proj": 1},
                  alpha_pattern={r"layers\.0.*gate_up_proj": 1}),
], ids=str)  # fmt: skip
def test_peft_reads_ours_and_it_comes_back(kind: str, method: Any, tmp_path: Path, judge: Judge) -> None:
    model = fw.attach(mixture(kind, eager=True), method)
    disturb(model, 0.3)
    fw.save(model, tmp_path)
    assert torch.equal(
        logits(fw.load(mixture(kind, eager=True), tmp_path), inputs("llama")), logits(model, inputs("llama"))
    )
    theirs = judge(mixture(kind, eager=True), tmp_path)
    wanted = logits(model.double(), inputs("llama"))
    assert (wanted - logits(mixture(kind, eager=True).double(), inputs("llama"))).abs().max() > 1e-4
    assert (wanted - logits(theirs.double(), inputs("llama"))).abs().max() <= 1e-9


def written(kind: str, folder: Path, **fields: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(
        mixture(kind, eager=True), LoraConfig(r=2, lora_alpha=6, **{"target_modules": []} | fields)
    ).eval()
    disturb(theirs, 0.3)
    theirs.save_pretrained(str(folder))
    return theirs


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("names", [
    ["experts.gate_up_proj", "experts.down_proj"], ["mlp.experts.down_proj"],
], ids=str)  # fmt: skip
def test_we_read_pefts(kind: str, names: list[str], tmp_path: Path) -> None:
    theirs = written(kind, tmp_path, target_parameters=names)
    model = fw.load(mixture(kind, eager=True), tmp_path)
    wanted = logits(theirs.double(), inputs("llama"))
    assert (wanted - logits(mixture(kind, eager=True).double(), inputs("llama"))).abs().max() > 1e-4
    assert (logits(model.double(), inputs("llama")) - wanted).abs().max() <= 1e-10
    fw.save(model.float(), tmp_path / "again")
    ours, peers = load_file(tmp_path / "again" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert sorted(ours) == sorted(peers)
    assert all(torch.equal(ours[k], peers[k]) for k in ours)


def test_one_step_of_training_is_pefts(tmp_path: Path, judge: Judge) -> None:
    model = fw.attach(mixture("mixtral", eager=True), fw.ExpertLoRA(rank=2))
    disturb(model, 0.3)
    fw.save(model, tmp_path)
    theirs = judge(mixture("mixtral", eager=True), tmp_path)
    for n, p in theirs.named_parameters():
        p.requires_grad_("lora_" in n)
    for m in (model, theirs):
        m(**inputs("llama")).logits.square().mean().backward()
    mine = [p.grad for p in model.parameters() if p.requires_grad]  # gate_up_proj, then down_proj
    peers = [p.grad for n, p in theirs.named_parameters() if p.requires_grad]
    assert len(mine) == len(peers) == 8
    for grad in mine:
        assert any(g.shape == grad.shape and torch.allclose(grad, g, atol=1e-7, rtol=1e-4) for g in peers)


@pytest.mark.parametrize("fields", [
    {}, {"use_rslora": True, "init_lora_weights": "gaussian"},
    {"rank_pattern": {"mlp.experts.down_proj": 3, "q_proj": 1}, "alpha_pattern": {"layers.1.*gate_up_proj": 9}},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
def test_experts_beside_other_layers(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """One file of peft with `target_modules` and `target_parameters` is one adapter here."""
    names = ["experts.gate_up_proj", "experts.down_proj"]
    theirs = written(kind, tmp_path, target_modules=["q_proj", "o_proj"], target_parameters=names, **fields)
    model = fw.load(mixture(kind, eager=True), tmp_path)
    wanted = logits(theirs.double(), inputs("llama"))
    assert (wanted - logits(mixture(kind, eager=True).double(), inputs("llama"))).abs().max() > 1e-4
    assert (logits(model.double(), inputs("llama")) - wanted).abs().max() <= 1e-10
    fw.save(model.float(), tmp_path / "again")
    ours, peers = load_file(tmp_path / "again" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert sorted(ours) == sorted(peers)
    assert all(torch.equal(ours[k], peers[k]) for k in ours)


def test_a_plain_lora_of_peft_is_still_a_lora(tmp_path: Path) -> None:
    theirs = written("mixtral", tmp_path, target_modules=["q_proj"])
    model = fw.load(mixture("mixtral", eager=True), tmp_path)
    torch.testing.assert_close(logits(model, inputs("llama")), logits(theirs, inputs("llama")), atol=1e-6, rtol=1e-5)
