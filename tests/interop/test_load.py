"""fw.load_model: base, adapter, tokenizer and task in one call."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb

from featherweight.checkpoint.save import save
from featherweight.core.attach import attach
from featherweight.core.errors import InputError
from featherweight.core.switch import switch_of
from featherweight.interop.load import load_model
from featherweight.interop.transformers import load_base
from featherweight.methods import LoRA
from featherweight.tasks import Classification

TASK = Classification(labels=("bad", "good", "fine"))


def trained(base: Path) -> Any:
    model = attach(load_base(base, TASK).eval(), LoRA(rank=2, dropout=0.1))
    disturb(model)
    return model


def ask(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**model.tokenizer(["the cat is good", "a bad dog"], padding=True, return_tensors="pt")).logits


@pytest.fixture
def adapter(bert: Path, tmp_path: Path) -> tuple[Any, Path]:
    model = trained(bert)
    save(model, tmp_path / "adapter")
    return model, tmp_path / "adapter"


def test_ready_for_inference(adapter: tuple[Any, Path]) -> None:
    model, folder = adapter
    loaded = load_model(folder)
    assert torch.equal(ask(loaded), ask(model))
    assert loaded.task == TASK
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_to_train_on(adapter: tuple[Any, Path]) -> None:
    loaded = load_model(adapter[1], train=True)
    assert loaded.training
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in loaded.named_parameters() if ".adapters." in n
    }
    assert switch_of(loaded).attached["default"].marked


def test_no_machine_path_in_the_json(adapter: tuple[Any, Path], bert: Path) -> None:
    config = json.loads((adapter[1] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-bert"
    assert str(bert.parent) not in (adapter[1] / "adapter_config.json").read_text()


def test_the_base_is_found(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the place on record; moved apart by run.toml, by the name from here, or by the argument; else an error."""
    base = tmp_path / "here" / "tiny-bert"
    shutil.copytree(bert, base)
    model = trained(base)
    save(model, tmp_path / "here" / "adapter")
    shutil.move(tmp_path / "here", tmp_path / "there")
    folder = tmp_path / "there" / "adapter"
    assert torch.equal(ask(load_model(folder)), ask(model))
    shutil.move(tmp_path / "there" / "tiny-bert", tmp_path / "tiny-bert")
    with pytest.raises(InputError, match="base is not where it was"):
        load_model(folder)
    assert torch.equal(ask(load_model(folder, base=tmp_path / "tiny-bert")), ask(model))
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert torch.equal(ask(load_model(folder)), ask(model))
    (folder / "run.toml").write_text(f'model = "{(tmp_path / "tiny-bert").as_posix()}"\n')
    assert torch.equal(ask(load_model(folder)), ask(model))


def test_another_base(adapter: tuple[Any, Path], bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(bert, other)
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"] += 0.01
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"another base.*bert\.encoder\.layer\.1\.output\.dense\.weight") as caught:
        load_model(adapter[1], base=other)
    assert "(tiny-bert)" in str(caught.value)
    assert "(other)" in str(caught.value)
    assert load_model(adapter[1], base=other, strict_base=False) is not None


@pytest.mark.parametrize(("config", "kind"), [
    (("BertConfig", {"vocab_size": 9}), "BertForSequenceClassification (other)"),
    (("BertConfig", {"hidden_size": 24, "num_attention_heads": 2}), "BertForSequenceClassification (other)"),
    (("LlamaConfig", {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 9}), "LlamaForSequenceClassification"),
    (("ViTConfig", {"hidden_size": 16, "num_attention_heads": 2}), "vit"),
], ids=["words", "width", "architecture", "no-such-head"])  # fmt: skip
def test_of_another_base_that_is_said_before_anything_else(
    adapter: tuple[Any, Path], bert: Path, tmp_path: Path, config: tuple[str, dict[str, Any]], kind: str
) -> None:
    import transformers

    small = {"num_hidden_layers": 1, "intermediate_size": 16, **config[1]}
    other = transformers.AutoModel.from_config(getattr(transformers, config[0])(**small))
    other.save_pretrained(tmp_path / "other")
    load_base(bert, TASK).tokenizer.save_pretrained(adapter[1])
    with pytest.raises(InputError) as caught:
        load_model(adapter[1], base=tmp_path / "other")
    first = str(caught.value.problems[0])
    assert "the adapter belongs to another base" in first
    assert "expected BertForSequenceClassification (tiny-bert)" in first
    assert f"got {kind}" in first


def test_a_folder_of_peft(bert: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_base(bert, TASK)
    theirs = get_peft_model(
        base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs", base=bert)
    assert loaded.task is None
    batch = loaded.tokenizer(["the cat sat"], return_tensors="pt")
    with torch.no_grad():
        assert (loaded(**batch).logits - theirs(**batch).logits).abs().max() <= 1e-6


def test_the_adapters_own_tokenizer(adapter: tuple[Any, Path]) -> None:
    model, folder = adapter
    model.tokenizer.add_tokens([])
    model.tokenizer.model_max_length = 17
    model.tokenizer.save_pretrained(folder)
    assert load_model(folder).tokenizer.model_max_length == 17


def test_other_dtypes(adapter: tuple[Any, Path]) -> None:
    """A cast base is the same base."""
    model, folder = adapter
    assert (ask(load_model(folder, dtype="bf16")).float() - ask(model)).abs().max() < 0.05
    assert (ask(load_model(folder, dtype="fp16")).float() - ask(model)).abs().max() < 0.01


def test_a_new_pooler_is_drawn_again(bert: Path, tmp_path: Path) -> None:
    """A checkpoint without a pooler: what training drew for it is drawn again, and another draw is found out."""
    from safetensors.torch import load_file, save_file

    base = tmp_path / "bare"
    shutil.copytree(bert, base)
    tensors = {k: t for k, t in load_file(base / "model.safetensors").items() if "pooler" not in k}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    model = attach(load_base(base, TASK, seed=11).eval(), LoRA(rank=2))
    assert "bert.pooler.dense.weight" in model.new_tensors
    save(model, tmp_path / "adapter")
    assert torch.equal(ask(load_model(tmp_path / "adapter")), ask(model))
    from featherweight.checkpoint.load import load

    with pytest.raises(InputError, match=r"another base.*bert\.pooler\.dense\.weight"):
        load(load_base(base, TASK), tmp_path / "adapter")
