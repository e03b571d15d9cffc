"""`load(replace=True)`: new tensors into a live adapter; what holds it stays valid; nothing changes on an error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.core.state import live, state
from featherweight.core.switch import switch_of

LORA = fw.LoRA(rank=2)


def made(arch: str = "llama", method: Any = LORA, name: str = "fr") -> Any:
    torch.manual_seed(0)
    return fw.attach(tiny(arch), method, name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = made()
    disturb(model)
    fw.save(model, tmp_path)
    return tmp_path


def tensors(model: Any, name: str = "fr") -> dict[str, torch.Tensor]:
    return {k: t.clone() for k, t in state(model, name).items()}


def test_the_same_tensors_in_the_same_places(folder: Path) -> None:
    model = made()
    fw.attach(model, fw.IA3(), "other", stack=True)
    places = {k: (id(t), t.data_ptr()) for k, t in live(model, "fr").items()}
    active, attached = switch_of(model).active, dict(switch_of(model).attached)
    fw.load(model, folder, "fr", replace=True)
    assert {k: (id(t), t.data_ptr()) for k, t in live(model, "fr").items()} == places
    assert (switch_of(model).active, switch_of(model).attached) == (active, attached)
    alone = fw.load(tiny("llama"), folder, "fr")
    fw.switch(model, "fr")
    assert torch.equal(logits(model, inputs("llama")), logits(alone, inputs("llama")))


def test_an_optimizer_goes_on_from_there(folder: Path) -> None:
    model = made()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    fw.load(model, folder, "fr", replace=True)
    assert [p for p in model.parameters() if p.requires_grad] == trained
    before = tensors(model)
    model(**inputs("llama")).logits.square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(t, before[k]) for k, t in tensors(model).items())


def test_a_compiled_graph_is_kept(folder: Path) -> None:
    graphs = []

    def counting(graph: Any, example: Any) -> Any:
        graphs.append(1)
        return graph.forward

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    fw.attach(net, fw.LoRA(rank=2, targets=("0", "1")), "fr")
    disturb(net)
    fw.save(net, folder / "net")
    x = torch.randn(3, 6)
    wanted = net(x)
    other = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    other.load_state_dict({k: v for k, v in net.state_dict().items() if "adapters" not in k})
    fw.attach(other, fw.LoRA(rank=2, targets=("0", "1")), "fr", train=False)
    compiled = torch.compile(other, backend=counting)
    with torch.no_grad():
        assert not torch.allclose(compiled(x), wanted)
        fw.load(other, folder / "net", "fr", replace=True)
        torch.testing.assert_close(compiled(x), wanted)
    assert len(graphs) == 1


def test_rows_see_it(folder: Path) -> None:
    model = made()
    fw.attach(model, fw.LoRA(rank=3), "de")
    fw.switch(model, rows=["fr", "de"])
    ids = {"input_ids": torch.arange(14).reshape(2, 7)}
    before = logits(model, ids)
    fw.load(model, folder, "fr", replace=True)
    after = logits(model, ids)
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1], after[1])
    fw.switch(model, "fr")
    torch.testing.assert_close(after[0], logits(model, {"input_ids": ids["input_ids"][:1]})[0])


def test_a_head_goes_along(tmp_path: Path) -> None:
    model = made("bert")
    disturb(model)
    fw.save(model, tmp_path)
    other = made("bert")
    fw.load(other, tmp_path, "fr", replace=True)
    assert torch.equal(logits(other, inputs("bert")), logits(model, inputs("bert")))
    bare = fw.attach(tiny("bert"), LORA, "fr", head=False)
    with pytest.raises(InputError, match=r"a head goes with one of the two only.*detach it first"):
        fw.load(bare, tmp_path, "fr", replace=True)


def test_what_only_training_uses_may_differ(folder: Path) -> None:
    model = made(method=fw.LoRA(rank=2, dropout=0.3, init="gaussian", targets=("q_proj", "value")))
    fw.load(model, folder, "fr", replace=True)
    assert torch.equal(logits(model, inputs("llama")), logits(fw.load(tiny("llama"), folder), inputs("llama")))
    assert switch_of(model).attached["fr"].method.dropout == 0.3


def test_pefts_folder_too(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    theirs = get_peft_model(tiny("llama"), config).eval()
    theirs.save_pretrained(str(tmp_path))
    model = fw.load(made(), tmp_path, "fr", replace=True)
    assert (logits(model, inputs("llama")) - logits(theirs, inputs("llama"))).abs().max() <= 1e-6


UNLIKE = {
    "rank": (fw.LoRA(rank=3), "lora_A.weight differs.*2, 32.*3, 32"),
    "scale": (fw.LoRA(rank=2, alpha=1), "scale differs"),
    "targets": (fw.LoRA(rank=2, targets="query"), "does not adapt|on a module that the file|a module that the adapter"),
    "method": (fw.IA3(), "another method"),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_one_that_is_built_differently_is_refused(what: str, folder: Path) -> None:
    method, says = UNLIKE[what]
    model = made(method=method)
    disturb(model)
    before, chance = tensors(model), torch.random.get_rng_state()
    with pytest.raises(InputError, match=f"(?s){says}.*detach it first"):
        fw.load(model, folder, "fr", replace=True)
    assert all(torch.equal(t, before[k]) for k, t in tensors(model).items())
    assert switch_of(model).attached["fr"].method == method
    assert torch.equal(torch.random.get_rng_state(), chance)


def test_a_damaged_file_changes_nothing(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    kept = load_file(folder / "adapter_model.safetensors")
    kept.pop(next(k for k in kept if "layers.1" in k))
    (folder / "adapter_model.safetensors").unlink()
    save_file(kept, folder / "adapter_model.safetensors")
    model = made()
    before = tensors(model)
    with pytest.raises(InputError, match="missing tensor"):
        fw.load(model, folder, "fr", replace=True)
    assert all(torch.equal(t, before[k]) for k, t in tensors(model).items())


def test_an_unknown_name_and_idle_words(folder: Path) -> None:
    model = made()
    with pytest.raises(InputError, match=r"nothing to replace.*did you mean 'fr'"):
        fw.load(model, folder, "frr", replace=True)
    with pytest.raises(InputError, match=r"(?s)stack.*train"):
        fw.load(model, folder, "fr", replace=True, stack=True, train=True)
    assert list(switch_of(model).attached) == ["fr"]
