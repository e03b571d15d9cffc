"""A transformers model saves its adapters only while they are attached, and is its old self when they are gone."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.core.host import frozen_class


@pytest.fixture
def model() -> Any:
    made = fw.attach(tiny("bert"), fw.LoRA(rank=2))
    disturb(made)
    return made


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_adapters_only(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == ["adapter_config.json", "adapter_model.safetensors"]
    assert torch.equal(logits(fw.load(tiny("bert"), tmp_path), inputs("bert")), logits(model, inputs("bert")))


def test_the_inner_model_too(model: Any, tmp_path: Path) -> None:
    model.bert.save_pretrained(tmp_path)
    assert names(tmp_path) == ["adapter_config.json", "adapter_model.safetensors"]


def test_several(model: Any, tmp_path: Path) -> None:
    fw.attach(model, fw.IA3(), "other")
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == ["adapter_config.json", "adapter_model.safetensors", "other"]
    assert torch.equal(logits(fw.load(tiny("bert"), tmp_path, "other"), inputs("bert")), logits(model, inputs("bert")))


def test_the_base_again_after_detach(model: Any, tmp_path: Path) -> None:
    plain = tiny("bert")
    fw.detach(model)
    assert type(model) is type(plain)
    assert type(model.bert) is type(plain.bert)
    assert "_hf_peft_config_loaded" not in vars(model)
    model.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path)
    assert torch.equal(logits(again.eval(), inputs("bert")), logits(plain, inputs("bert")))


def test_merged_models_are_saved_whole(model: Any, tmp_path: Path) -> None:
    before = logits(model, inputs("bert"))
    fw.merge(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert (logits(again, inputs("bert")) - before).abs().max() <= 1e-5


def test_class_and_signature_stay(model: Any) -> None:
    plain = tiny("bert")
    assert isinstance(model, type(plain))
    assert (type(model).__name__, type(model).__module__) == (type(plain).__name__, type(plain).__module__)
    assert frozen_class(model).__name__ == type(plain).__name__


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(model: Any, way: Any, tmp_path: Path) -> None:
    other = way(model)
    assert torch.equal(logits(other, inputs("bert")), logits(model, inputs("bert")))
    with torch.no_grad():
        next(p for p in other.parameters() if p.requires_grad).add_(1)
    other.save_pretrained(tmp_path / "a")
    assert not torch.equal(logits(other, inputs("bert")), logits(model, inputs("bert")))
    assert torch.equal(logits(fw.load(tiny("bert"), tmp_path / "a"), inputs("bert")), logits(other, inputs("bert")))


def test_other_ranks_do_not_write(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="not pushed"):
        model.save_pretrained(tmp_path / "none", push_to_hub=True)


def test_gradient_checkpointing_trains() -> None:
    model = fw.attach(tiny("llama"), fw.LoRA(rank=2))
    disturb(model)
    model.train()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) and a.any() for a, b in zip(gradients(), plain, strict=True))
