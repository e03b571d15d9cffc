"""ADALORA files, both ways, whole and pruned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.checkpoint.files import CONFIG, WEIGHTS, read_json
from featherweight.core.state import adapters, state
from featherweight.methods.triplets import triplets

Judge = Callable[[Any, Path], Any]
# peft says of ranks that were pruned to nothing that their tensors are empty, and takes its masks for LoRA's ranks
pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter 'default'. .* LoRA tensor.s. have invalid shape"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]
MASKS = {"0.": [True, False, True, True], "1.": [False, False, False, True]}


def pruned(model: Any) -> Any:
    """Ranks fixed as after an allocation: more in the first block than in the second."""
    for path, t in triplets(adapters(model, "default")).items():
        t.kept.copy_(torch.tensor(next(mask for block, mask in MASKS.items() if f".{block}" in path)))
        t.hold()
    return model


def made(arch: str, method: fw.AdaLoRA) -> Any:
    torch.manual_seed(3)
    model = fw.attach(tiny(arch), method, head=False)
    disturb(model, 0.3)
    return model


METHODS = {
    "whole": fw.AdaLoRA(rank=4, target_rank=2),
    "slices": fw.AdaLoRA(rank=4, target_rank=2, alpha=3, targets=("query", "value")),
    "slices-and-whole": fw.AdaLoRA(rank=4, target_rank=2, targets=("query", "down"), dropout=0.1),
}


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "neox", "phi3", "t5"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("cut", [False, True])
def test_peft_reads_ours(name: str, arch: str, cut: bool, tmp_path: Path, judge: Judge) -> None:
    model = made(arch, METHODS[name])
    if cut and arch != "t5":
        pruned(model)
    fw.save(model, tmp_path)
    theirs = judge(tiny(arch), tmp_path)
    mine = logits(model.double(), inputs(arch))
    assert (mine - logits(tiny(arch).double(), inputs(arch))).abs().max() > 1e-5
    assert (mine - logits(theirs.double(), inputs(arch))).abs().max() <= 1e-9


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_ours_comes_back(arch: str, cut: bool, tmp_path: Path) -> None:
    """Factors of pruned ranks are not in the file, and neither is what only resumes a run."""
    model = made(arch, METHODS["slices-and-whole"])
    before = state(model, "default")
    next(t for k, t in before.items() if "sensitivity" in k).fill_(1)
    if cut:
        pruned(model)
    fw.save(model, tmp_path)
    assert not [k for k in load_file(tmp_path / WEIGHTS) if "sensitivity" in k or "kept" in k]
    other = fw.load(tiny(arch), tmp_path)
    assert torch.equal(logits(other, inputs(arch)), logits(model, inputs(arch)))
    after = state(other, "default")
    assert not [k for k, t in after.items() if "sensitivity" in k and t.any()]
    assert all(torch.equal(t, before[k]) for k, t in after.items() if "kept" in k)
    fw.save(other, tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes()[-1000:] == (tmp_path / WEIGHTS).read_bytes()[-1000:]
    assert read_json(tmp_path / "again" / CONFIG) == read_json(tmp_path / CONFIG)


def test_ranks_that_grew_again_are_saved(tmp_path: Path) -> None:
    """Between two allocations the optimizer moves what the last one zeroed: a file holds what is on, not the mask."""
    model = pruned(made("llama", METHODS["whole"]))
    disturb(model, 0.3, seed=8)
    fw.save(model, tmp_path)
    assert torch.equal(logits(fw.load(tiny("llama"), tmp_path), inputs("llama")), logits(model, inputs("llama")))


@pytest.mark.parametrize("steps", [0, 5, 12])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_we_read_pefts(arch: str, steps: int, tmp_path: Path) -> None:
    """Written before, within and after the allocation, by peft's own allocator."""
    from peft import AdaLoraConfig, get_peft_model

    names = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}[arch]
    config = AdaLoraConfig(init_r=5, target_r=2, lora_alpha=7, total_step=12, tfinal=2, tinit=1, target_modules=names,
                           fan_in_fan_out=arch == "gpt2", task_type="CAUSAL_LM")  # fmt: skip
    torch.manual_seed(1)
    theirs = get_peft_model(tiny(arch), config)
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], 0.5)
    for step in range(1, steps + 1):
        ids = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(step))
        theirs(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    theirs.eval().save_pretrained(str(tmp_path))
    model = fw.load(tiny(arch), tmp_path)
    wanted = logits(theirs.double(), inputs(arch))
    assert (wanted - logits(tiny(arch).double(), inputs(arch))).abs().max() > 1e-3
    assert (logits(model.double(), inputs(arch)) - wanted).abs().max() <= 1e-10
    kept = [int(t.kept.sum()) for t in triplets(adapters(model, "default")).values()]
    assert (sum(kept) == 2 * len(kept)) == (steps == 12)
    fw.save(model.float(), tmp_path / "again")
    ours, peers = load_file(tmp_path / "again" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert sorted(ours) == sorted(peers)
    assert all(ours[k].shape == peers[k].shape for k in ours)


def test_misspelt_and_foreign(tmp_path: Path) -> None:
    fw.save(made("llama", METHODS["whole"]), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_F"] = tensors.pop(
        "base_model.model.model.layers.0.self_attn.q_proj.lora_E"
    )
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(fw.InputError, match=r"q_proj\.lora_F: misspelt tensor; rename it to .*lora_E"):
        fw.load(tiny("llama"), tmp_path)
