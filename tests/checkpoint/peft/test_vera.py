"""VERA files, both ways: with the projections, from their seed alone, and over slices."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.checkpoint.files import CONFIG, WEIGHTS
from featherweight.core.state import state

Judge = Callable[[Any, Path], Any]
pytestmark = pytest.mark.filterwarnings("ignore:Specified to not (load|save) vera_A and vera_B")
METHODS = {
    "whole": fw.VeRA(rank=6, targets="linear"),
    "slices": fw.VeRA(rank=6),
    "slices-and-whole": fw.VeRA(rank=5, targets=("key", "down", "up"), seed=4, dropout=0.1),
    "drawn": fw.VeRA(rank=6, targets="linear", save_projection=False, seed=9),
}


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "neox", "phi3", "t5"])
@pytest.mark.parametrize("name", METHODS)
def test_peft_reads_ours_and_it_comes_back(name: str, arch: str, tmp_path: Path, judge: Judge) -> None:
    torch.manual_seed(3)
    model = fw.attach(tiny(arch), METHODS[name], head=False)
    disturb(model, 0.3)
    fw.save(model, tmp_path)
    assert any("vera_A" in k for k in load_file(tmp_path / WEIGHTS)) == (name != "drawn")
    other = fw.load(tiny(arch), tmp_path)
    mine = state(model, "default")
    assert all(torch.equal(t, mine[k]) for k, t in state(other, "default").items())
    assert torch.equal(logits(other, inputs(arch)), logits(model, inputs(arch)))
    theirs = judge(tiny(arch), tmp_path)
    wanted = logits(model.double(), inputs(arch))
    assert (wanted - logits(tiny(arch).double(), inputs(arch))).abs().max() > 1e-5
    assert (wanted - logits(theirs.double(), inputs(arch))).abs().max() <= 1e-9


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_we_read_pefts(arch: str, saved: bool, tmp_path: Path) -> None:
    from peft import VeraConfig, get_peft_model

    names = {"llama": ["k_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}[arch]
    config = VeraConfig(r=5, target_modules=names, projection_prng_key=6, save_projection=saved, d_initial=0.2,
                        fan_in_fan_out=arch == "gpt2")  # fmt: skip
    theirs = get_peft_model(tiny(arch), config).eval()
    disturb(theirs, 0.3)
    theirs.save_pretrained(str(tmp_path))
    model = fw.load(tiny(arch), tmp_path)
    wanted = logits(theirs.double(), inputs(arch))
    assert (wanted - logits(tiny(arch).double(), inputs(arch))).abs().max() > 1e-3
    assert (logits(model.double(), inputs(arch)) - wanted).abs().max() <= 1e-10
    fw.save(model.float(), tmp_path / "again")
    ours, peers = load_file(tmp_path / "again" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert sorted(ours) == sorted(peers)
    assert all(torch.equal(ours[k], peers[k]) for k in ours)


def test_one_step_of_training_is_pefts(tmp_path: Path, judge: Judge) -> None:
    model = fw.attach(tiny("llama"), fw.VeRA(rank=6, targets="linear"))
    disturb(model, 0.3)
    fw.save(model, tmp_path)
    theirs = judge(tiny("llama"), tmp_path)
    for n, p in theirs.named_parameters():
        p.requires_grad_("vera_lambda" in n)
    for m in (model, theirs):
        m(**inputs("llama")).logits.square().mean().backward()
    peers = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    mine = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert len(peers) == len(mine)
    for n, grad in mine.items():
        torch.testing.assert_close(grad, peers[f"base_model.model.{n.replace('.adapters.default', '')}"], atol=1e-6,
                                   rtol=1e-4)  # fmt: skip


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(fw.InputError, match="slices of a fused projection cannot be drawn again"):
        fw.save(fw.attach(tiny("gpt2"), fw.VeRA(rank=4, save_projection=False)), tmp_path)
    fw.save(fw.attach(tiny("llama"), fw.VeRA(rank=4)), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["base_model.vera_A"]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(fw.InputError, match=r"base_model\.vera_A: missing tensor; expected \(4, 32\)"):
        fw.load(tiny("llama"), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"bias": "all", "r": "4"}))
    with pytest.raises(fw.InputError, match=r"r: wrong type; expected int"):
        fw.load(tiny("llama"), tmp_path)
