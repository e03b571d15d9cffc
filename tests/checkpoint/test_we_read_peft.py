"""Folders that the real peft wrote: equal logits, or an error that says what cannot be expressed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import inputs, logits, tiny

import featherweight as fw
from featherweight.checkpoint.files import CONFIG, WEIGHTS
from featherweight.core.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. .* LoRA tensor.s. have invalid shape"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]


def written(arch: str, config: Any, folder: Path, task: str = "") -> Any:
    """A peft model with non-trivial values, saved."""
    from peft import get_peft_model

    model = get_peft_model(tiny(arch, task=task), config).eval()
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=noise))
    model.save_pretrained(str(folder))
    return model


def lora(**fields: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6} | fields)


ATTENTION = {
    "bert": "query",
    "roberta": "value",
    "gpt2": "c_attn",
    "llama": "q_proj",
    "neox": "query_key_value",
    "phi3": "qkv_proj",
    "t5": "q",
}
MLP = {"bert": "intermediate.dense", "roberta": "output.dense", "gpt2": "c_fc", "llama": "down_proj",
       "neox": "dense_4h_to_h", "phi3": "gate_up_proj", "t5": "wo"}  # fmt: skip
NORMS = {"bert": "LayerNorm", "gpt2": "ln_1", "llama": "input_layernorm", "t5": "layer_norm", "phi3": "norm"}


def close(model: Any, theirs: Any, arch: str) -> bool:
    """Equal outputs, in fp64: T5's unscaled attention magnifies fp32's rounding past 1e-6."""
    wanted = logits(theirs.double(), inputs(arch))
    assert (wanted - logits(tiny(arch), inputs(arch))).abs().max() > 1e-4
    return bool((logits(model.double(), inputs(arch)) - wanted).abs().max() <= 1e-10)


@pytest.mark.parametrize("arch", ATTENTION)
@pytest.mark.parametrize("fields", [
    {}, {"use_rslora": True, "lora_dropout": 0.2}, {"rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 9}},
    {"layers_to_transform": [1]}, {"exclude_modules": r".*\.0\..*"}, {"init_lora_weights": "gaussian"},
], ids=str)  # fmt: skip
def test_lora(arch: str, fields: dict[str, Any], tmp_path: Path) -> None:
    config = lora(target_modules=[ATTENTION[arch], MLP[arch]], fan_in_fan_out=arch == "gpt2", **fields)
    theirs = written(arch, config, tmp_path)
    model = fw.load(tiny(arch), tmp_path)
    fw.save(model, tmp_path / "again")
    assert close(model, theirs, arch)
    ours, peers = load_file(tmp_path / "again" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert sorted(ours) == sorted(peers)
    assert all(torch.equal(ours[k], peers[k]) for k in ours)


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "t5"])
def test_all_linear(arch: str, tmp_path: Path) -> None:
    kind = "SEQ_CLS" if arch == "bert" else None
    theirs = written(arch, lora(target_modules="all-linear", fan_in_fan_out=arch == "gpt2", task_type=kind), tmp_path)
    assert close(fw.load(tiny(arch), tmp_path), theirs, arch)


def test_a_regex(tmp_path: Path) -> None:
    theirs = written("llama", lora(target_modules=r".*\.1\..*(q_proj|up_proj)"), tmp_path)
    assert close(fw.load(tiny("llama"), tmp_path), theirs, "llama")


@pytest.mark.parametrize("arch", ["bert", "llama", "gpt2"])
def test_embeddings_and_their_frozen_copy(arch: str, tmp_path: Path) -> None:
    table = {"bert": "word_embeddings", "llama": "embed_tokens", "gpt2": "wte"}[arch]
    theirs = written(arch, lora(target_modules=[table, ATTENTION[arch]], fan_in_fan_out=arch == "gpt2"), tmp_path)
    assert close(fw.load(tiny(arch), tmp_path), theirs, arch)


@pytest.mark.parametrize(("arch", "task", "kind"), [
    ("bert", "", "SEQ_CLS"), ("roberta", "", "SEQ_CLS"), ("gpt2", "classify", "SEQ_CLS"),
    ("llama", "classify", "SEQ_CLS"),
])  # fmt: skip
def test_heads(arch: str, task: str, kind: str, tmp_path: Path) -> None:
    theirs = written(
        arch, lora(task_type=kind, target_modules=[ATTENTION[arch]], fan_in_fan_out=arch == "gpt2"), tmp_path, task
    )
    model = fw.load(tiny(arch, task=task), tmp_path)
    assert (logits(model, inputs(arch)) - logits(theirs, inputs(arch))).abs().max() <= 1e-6


def test_a_language_model_head(tmp_path: Path) -> None:
    theirs = written("llama", lora(target_modules=["q_proj"], modules_to_save=["lm_head"]), tmp_path)
    assert close(fw.load(tiny("llama"), tmp_path), theirs, "llama")


@pytest.mark.parametrize("arch", ATTENTION)
def test_ia3(arch: str, tmp_path: Path) -> None:
    from peft import IA3Config

    down = {"bert": "output.dense", "roberta": "output.dense", "gpt2": "mlp.c_proj", "phi3": "down_proj"}.get(
        arch, MLP[arch]
    )
    config = IA3Config(
        target_modules=[ATTENTION[arch], down], feedforward_modules=[down], fan_in_fan_out=arch == "gpt2"
    )
    theirs = written(arch, config, tmp_path)
    assert close(fw.load(tiny(arch), tmp_path), theirs, arch)


@pytest.mark.parametrize("arch", NORMS)
def test_norms(arch: str, tmp_path: Path) -> None:
    from peft import LNTuningConfig

    theirs = written(arch, LNTuningConfig(target_modules=[NORMS[arch]]), tmp_path)
    assert close(fw.load(tiny(arch), tmp_path), theirs, arch)


@pytest.mark.parametrize(("fields", "says"), [
    ({"lora_bias": True}, "lora_bias: not supported"),
    ({"bias": "all"}, "bias: not supported"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices: not supported"),
    ({"modules_to_save": ["norm"]}, "modules_to_save: whole modules saved beside"),
])  # fmt: skip
def test_what_cannot_be_expressed(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    arch = "bert" if "bias" in str(fields) else "llama"
    written(arch, lora(target_modules=[ATTENTION[arch]], **fields), tmp_path)
    with pytest.raises(InputError, match=says):
        fw.load(tiny(arch), tmp_path)


def test_other_types(tmp_path: Path) -> None:
    from peft import LoHaConfig

    written("llama", LoHaConfig(target_modules=["q_proj"], r=2), tmp_path)
    with pytest.raises(
        InputError, match=r"peft_type: an adapter of a type that cannot be loaded.*IA3.*LORA.*got 'LOHA'"
    ):
        fw.load(tiny("llama"), tmp_path)


def test_mutated_bases(tmp_path: Path) -> None:
    written("llama", lora(target_modules=["q_proj"], init_lora_weights="olora"), tmp_path)
    with pytest.raises(InputError, match="its initialization changed the base's weights"):
        fw.load(tiny("llama"), tmp_path)


def edited(folder: Path, **fields: Any) -> None:
    form = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps(form))


def test_unknown_keys_are_tolerated_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = written("llama", lora(target_modules=["q_proj"]), tmp_path)
    edited(tmp_path, use_rlsora=True, of_the_future={"a": 1}, runtime_config=None)
    assert close(fw.load(tiny("llama"), tmp_path), theirs, "llama")
    said = [r.getMessage() for r in caplog.records if r.name == "featherweight"]
    assert len(said) == 2
    assert "use_rlsora is not known here and ignored (did you mean 'use_rslora'?)" in said[0]


def test_bad_fields_all_at_once(tmp_path: Path) -> None:
    written("llama", lora(target_modules=["q_proj"]), tmp_path)
    edited(tmp_path, r="4", lora_alpha=True, rank_pattern=[])
    with pytest.raises(InputError) as caught:
        fw.load(tiny("llama"), tmp_path)
    assert [p.where for p in caught.value.problems] == [f"{CONFIG}:{k}" for k in ("r", "lora_alpha", "rank_pattern")]


def test_a_misspelt_tensor(tmp_path: Path) -> None:
    """peft loads this file: random A times loaded B."""
    written("llama", lora(target_modules=["q_proj"]), tmp_path)
    tensors = {k.replace("layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.q_proj.lora_a"): t
               for k, t in load_file(tmp_path / WEIGHTS).items()}  # fmt: skip
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(InputError, match=r"lora_a\.weight: misspelt tensor; rename it to .*lora_A\.weight"):
        fw.load(tiny("llama"), tmp_path)


def test_a_changed_embedding(tmp_path: Path) -> None:
    written("llama", lora(target_modules=["embed_tokens"]), tmp_path)
    other = tiny("llama")
    with torch.no_grad():
        other.model.embed_tokens.weight[3] += 1
    with pytest.raises(InputError, match=r"embed_tokens\.base_layer\.weight: a changed copy of a tensor of the base"):
        fw.load(other, tmp_path)


def test_targets_that_are_not_there(tmp_path: Path) -> None:
    written("llama", lora(target_modules=["q_proj"]), tmp_path)
    with pytest.raises(InputError, match="target_modules: target that hits no module; got 'q_proj'"):
        fw.load(tiny("gpt2"), tmp_path)


def test_convolutions(tmp_path: Path) -> None:
    from peft import get_peft_model

    def toy() -> Any:
        torch.manual_seed(1)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(96, 5)
        ).eval()

    theirs = get_peft_model(toy(), lora(target_modules=["0", "2"], use_rslora=True)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p) * p.requires_grad)
    theirs.save_pretrained(str(tmp_path))
    x = torch.randn(2, 3, 4, 4)
    model = fw.load(toy(), tmp_path)
    with torch.no_grad():
        assert (theirs(x) - toy()(x)).abs().max() > 1e-3
        assert (model(x) - theirs(x)).abs().max() <= 1e-6
