"""SHiRA: its count, its places, and PEFT's file both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from torch import Tensor

import featherweight as fw
from featherweight.core.state import adapters, state


def test_counts_are_loras_and_the_places_are_distinct() -> None:
    model = fw.attach(tiny("llama"), fw.SHiRA(rank=3))
    assert fw.trainable(model).trainable == 3 * 2 * ((32 + 32) + (32 + 16))
    for a in adapters(model, "default").values():
        assert len({tuple(p) for p in a.shira_indices.T.tolist()}) == len(a.shira_weight)
    again = state(fw.attach(tiny("llama"), fw.SHiRA(rank=3)), "default")
    assert all(torch.equal(t, again[k]) for k, t in state(model, "default").items())
    other = state(fw.attach(tiny("llama"), fw.SHiRA(rank=3, seed=1)), "default")
    assert any(not torch.equal(t, again[k]) for k, t in other.items())


def test_magnitude_takes_the_largest_weights_and_fisher_the_most_informative() -> None:
    model = fw.attach(tiny("bert"), fw.SHiRA(rank=2, targets="query", mask="magnitude"), head=False)
    path, a = next(iter(adapters(model, "default").items()))
    W = model.get_submodule(path).weight
    at = a.shira_indices.long()
    left = W.detach().abs().clone()
    left[at[0], at[1]] = 0
    assert W.detach().abs()[at[0], at[1]].min() >= left.max()

    batch = inputs("bert") | {"labels": torch.tensor([0, 2])}
    squares: Tensor = torch.zeros(())
    full = tiny("bert")
    for i in range(2):
        full.zero_grad()
        full(**{k: v[i : i + 1] for k, v in batch.items()}).loss.backward()
        squares = squares + full.get_submodule(path).weight.grad.square() / 2
    model = fw.attach(tiny("bert"), fw.SHiRA(rank=2, targets="query", mask="fisher"), head=False)
    fw.prepare(model, [batch])
    a = adapters(model, "default")[path]
    found = set(map(tuple, a.shira_indices.T.tolist()))
    best = squares.flatten().topk(len(found)).indices
    assert found == {(int(i) // 32, int(i) % 32) for i in best}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch, of peft's sparse tensors
@pytest.mark.parametrize("arch", ["bert", "llama", "t5"])
@pytest.mark.parametrize("mask", ["random", "magnitude"])
def test_peft_reads_ours(arch: str, mask: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = fw.attach(tiny(arch), fw.SHiRA(rank=2, mask=mask), head=False)
    disturb(model, scale=1.0)
    fw.save(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny(arch), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs(arch)).logits, logits(model, inputs(arch)), atol=1e-5, rtol=1e-5)
    assert (logits(model, inputs(arch)) - logits(tiny(arch), inputs(arch))).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_slices_are_one_change_of_the_whole_that_peft_reads(tmp_path: Path) -> None:
    """Phi-3's fused projection: fewer values than r (in + out) of the whole are filled up with zeros."""
    from peft import PeftModel

    model = fw.attach(tiny("phi3"), fw.SHiRA(rank=2))
    disturb(model)
    fw.save(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny("phi3"), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs("phi3")).logits, logits(model, inputs("phi3")), atol=1e-5, rtol=1e-5)
    back = fw.load(tiny("phi3"), tmp_path)
    assert all(torch.equal(t, state(model, "default")[k]) for k, t in state(back, "default").items())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_we_read_pefts(arch: str, tmp_path: Path) -> None:
    from peft import ShiraConfig, get_peft_model

    torch.manual_seed(0)
    names = ["query", "value"] if arch == "bert" else ["q_proj", "up_proj"]
    config = ShiraConfig(r=2, target_modules=names, init_weights=False)
    theirs: Any = get_peft_model(tiny(arch), config).eval()
    theirs.peft_config["default"].init_weights = True  # what a trained one says: the values are in the file
    theirs.save_pretrained(tmp_path)
    model = fw.load(tiny(arch), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, inputs(arch)), theirs(**inputs(arch)).logits, atol=1e-6, rtol=1e-5)


def test_damaged_places_and_bad_fields(tmp_path: Path) -> None:
    with pytest.raises(fw.InputError, match="mask"):
        fw.attach(tiny("bert"), fw.SHiRA(mask="largest"))
    with pytest.raises(fw.InputError, match="1 to 16"):
        fw.attach(tiny("bert"), fw.SHiRA(rank=17))
    with pytest.raises(fw.InputError, match="samples"):
        fw.attach(tiny("bert"), fw.SHiRA(samples=0))
    fw.save(fw.attach(tiny("llama"), fw.SHiRA(rank=2)), tmp_path)
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.shira_indices"
    tensors[key] = tensors[key] + 30
    save_file(tensors, path, metadata)
    with pytest.raises(fw.InputError, match="not places"):
        fw.load(tiny("llama"), tmp_path)
