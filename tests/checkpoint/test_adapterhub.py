"""AdapterHub's folders against what the library `adapters` computes (tests/golden), read and written."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import featherweight as fw
from featherweight.checkpoint import adapterhub
from featherweight.core.state import live

GOLDEN = Path(__file__).parents[1] / "golden"
ARCHITECTURES = ("bert", "gpt2", "llama", "t5", "bart")
METHODS = (
    "houlsby", "houlsby-two", "houlsby-cross", "pfeiffer", "pfeiffer-two", "parallel", "parallel-learned", "compacter",
    "compacter-own", "compacter-plus",
)  # fmt: skip
FUSED = {"fusion-pfeiffer": ("pfeiffer", "pfeiffer-two"), "fusion-houlsby": ("houlsby", "houlsby-two")}


@cache
def read(arch: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    folder = GOLDEN / arch
    about = json.loads((folder / "config.json").read_text())
    return about, load_file(folder / "expected.safetensors"), load_file(folder / "adapters.safetensors")


def base(arch: str) -> Any:
    about = read(arch)[0]
    config = getattr(transformers, about["config"])(**about["options"], attn_implementation="eager")
    model = getattr(transformers, about["model"])(config)
    missing, extra = model.load_state_dict(load_file(GOLDEN / arch / "base.safetensors"), strict=False)
    assert not extra
    assert not missing
    return model.eval()


def output(model: nn.Module, arch: str) -> Tensor:
    inputs = {k: v for k, v in read(arch)[1].items() if k.endswith("input_ids")}
    with torch.no_grad():
        made = model(**inputs)
    return made.last_hidden_state if arch == "bert" else made.logits


def folder_of(arch: str, name: str, where: Path, **changes: Any) -> Path:
    """The folder as `adapters` wrote it."""
    about, _, tensors = read(arch)
    folder = where / name
    folder.mkdir()
    form = about["adapters"][name]
    (folder / "adapter_config.json").write_text(json.dumps(form | {"config": form["config"] | changes}))
    save_file({k: t for k, t in tensors.items() if f".{name}." in k}, folder / "adapter.safetensors")
    return folder


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-6 * float(theirs.abs().max().clamp(min=1)), rtol=1e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_bases_agree(arch: str) -> None:
    close(output(base(arch), arch), read(arch)[1]["none"])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", METHODS)
def test_outputs_equal_those_of_adapters(name: str, arch: str, tmp_path: Path) -> None:
    expected = read(arch)[1]
    model = fw.load(base(arch), folder_of(arch, name, tmp_path), "mine")
    close(output(model, arch), expected[name])
    assert (expected[name] - expected["none"]).abs().max() > 0.05
    with fw.switch(model, None):
        close(output(model, arch), expected["none"])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", list(FUSED))
def test_fusion_equals_that_of_adapters(name: str, arch: str, tmp_path: Path) -> None:
    _, expected, tensors = read(arch)
    model = base(arch)
    for one in FUSED[name]:
        fw.load(model, folder_of(arch, one, tmp_path), one)
    fw.attach(model, fw.Fusion(of=FUSED[name]), "fused", head=False)
    mark = f".adapter_fusion_layer.{','.join(FUSED[name])}."
    theirs = {adapterhub.trunk(model, k): t for k, t in tensors.items() if mark in k}
    behind, blocks = adapterhub.homes(model)
    for key, tensor in live(model, "fused").items():
        path, _, leaf = key.rpartition(".")
        path, _, matrix = path.rpartition(".")
        block = model.get_submodule(path).adapters[FUSED[name][0]].block
        home = adapterhub.trunk(model, behind.get(path, blocks[block]))
        with torch.no_grad():
            tensor.copy_(theirs.pop(f"{home}{mark}{matrix}.{leaf}"))
    assert not theirs
    close(output(model, arch), expected[name])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", METHODS)
def test_what_we_write_is_what_adapters_writes(name: str, arch: str, tmp_path: Path) -> None:
    """The same tensors under the same keys, and every field of the config that shapes the adapter."""
    about, _, tensors = read(arch)
    model = fw.load(base(arch), folder_of(arch, name, tmp_path), name)
    adapterhub.save(model, tmp_path / "ours", name)
    ours = load_file(tmp_path / "ours" / "adapter.safetensors")
    theirs = {k: t for k, t in tensors.items() if f".{name}." in k}
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    form = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    start = ("init_weights", "phm_c_init", "hypercomplex_nonlinearity")
    assert {k: v for k, v in form["config"].items() if k not in start} == {
        k: v for k, v in about["adapters"][name]["config"].items() if k not in start
    }
    assert {k: form[k] for k in ("name", "hidden_size", "model_class", "model_type", "version")} == {
        k: about["adapters"][name][k] for k in ("name", "hidden_size", "model_class", "model_type", "version")
    }


def test_lin_on_pre_norm_models_is_their_bottleneck_with_a_norm_in_front() -> None:
    for arch in ("gpt2", "llama", "t5"):
        _, expected, tensors = read(arch)
        model = fw.attach(base(arch), fw.Lin(bottleneck=4), "lin", head=False)
        names = {"norm": "adapter_norm_before", "down": "adapter_down.2", "up": "adapter_up"}
        names["down"] = "adapter_down.1"
        blocks = adapterhub.homes(model)[1]
        for key, tensor in live(model, "lin").items():
            path, part, leaf = key.rsplit(".", 2)
            home = blocks[model.get_submodule(path).adapters["lin"].block]
            with torch.no_grad():
                tensor.copy_(tensors[f"{home}.adapters.lin.{names[part]}.{leaf}"])
        close(output(model, arch), expected["lin"])


def test_a_trunk_reads_what_a_model_with_a_head_wrote_and_back(tmp_path: Path) -> None:
    trunk = fw.load(base("bert"), folder_of("bert", "compacter", tmp_path), "c")
    config = trunk.config
    headed = transformers.BertForSequenceClassification(config).eval()
    headed.bert.load_state_dict(base("bert").state_dict())
    fw.load(headed, tmp_path / "compacter", "c")
    adapterhub.save(headed, tmp_path / "headed", "c")
    keys = list(load_file(tmp_path / "headed" / "adapter.safetensors"))
    assert all(k.startswith("bert.") for k in keys)
    assert "bert.shared_parameters.c.phm_rule" in keys
    again = fw.load(base("bert"), tmp_path / "headed", "d")
    assert torch.equal(output(again, "bert"), output(trunk, "bert"))


def test_any_bottleneck_comes_back(tmp_path: Path) -> None:
    """There a size is ⌊width / factor⌋ of a float: 16 // 3.2 is 4."""
    for size in range(1, 21):
        model = fw.attach(base("bert"), fw.Pfeiffer(bottleneck=size), "p", head=False)
        adapterhub.save(model, tmp_path / str(size), "p")
        written = json.loads((tmp_path / str(size) / "adapter_config.json").read_text())["config"]["reduction_factor"]
        assert int(16 // written) == size
        again = fw.load(base("bert"), tmp_path / str(size), "p")
        assert torch.equal(output(again, "bert"), output(model, "bert"))


def test_a_parallel_adapter_that_reads_the_normed_input_has_no_form_there(tmp_path: Path) -> None:
    with pytest.raises(fw.InputError, match=r'expected reads="residual"'):
        adapterhub.save(fw.attach(base("gpt2"), fw.Parallel(), "p", head=False), tmp_path, "p")
    adapterhub.save(fw.attach(base("bert"), fw.Parallel(), "p", head=False), tmp_path, "p")
    assert (tmp_path / "adapter.safetensors").is_file()


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = folder_of("bert", "pfeiffer", tmp_path)
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    with pytest.raises(fw.InputError, match=r"never read.*use_safetensors=True"):
        fw.load(base("bert"), folder)


REFUSED = {
    "use_gating": True,
    "inv_adapter": "nice",
    "ln_after": True,
    "ln_before": True,
    "scaling": "channel",
    "leave_out": [1],
    "reduction_factor": {"0": 2, "default": 4},
    "factorized_phm_rule": True,
    "residual_before_ln": False,
}


def test_everything_that_cannot_be_expressed_is_refused_at_once(tmp_path: Path) -> None:
    model = base("bert")
    with pytest.raises(fw.InputError) as error:
        fw.load(model, folder_of("bert", "pfeiffer", tmp_path, **REFUSED))
    assert {p.where.rpartition(".")[2] for p in error.value.problems} == set(REFUSED)
    assert not [n for n, _ in model.named_parameters() if "adapters" in n]
    with pytest.raises(fw.InputError, match="another method"):
        fw.load(model, folder_of("bert", "houlsby", tmp_path, architecture="lora"))


def test_files_without_a_version_have_other_names_for_gelu(tmp_path: Path) -> None:
    folder = folder_of("bert", "pfeiffer-two", tmp_path)
    form = json.loads((folder / "adapter_config.json").read_text())
    del form["version"]
    (folder / "adapter_config.json").write_text(json.dumps(form))
    fw.load(model := base("bert"), folder)
    assert "gelu_new" in repr(adapterhub.switch_of(model).attached["default"].method)


def test_a_misspelt_tensor_is_named(tmp_path: Path) -> None:
    folder = folder_of("gpt2", "pfeiffer", tmp_path)
    tensors = load_file(folder / "adapter.safetensors")
    key = next(k for k in tensors if k.endswith("adapter_up.weight"))
    tensors[key.replace("adapter_up", "adapter_upp")] = tensors.pop(key)
    save_file(tensors, folder / "adapter.safetensors")
    model = base("gpt2")
    with pytest.raises(fw.InputError, match="misspelt"):
        fw.load(model, folder)
    assert not [n for n, _ in model.named_parameters() if "adapters" in n]


def test_what_adapterhub_lacks_is_refused_on_writing(tmp_path: Path) -> None:
    for method, words in (
        (fw.Houlsby(), "trained norms"),
        (fw.LoRA(rank=2), "no bottleneck"),
        (fw.Lin(), "no bottleneck"),
    ):
        model = fw.attach(base("bert"), method, "a", head=False)
        with pytest.raises(fw.InputError, match=words):
            adapterhub.save(model, tmp_path, "a")
    assert not list(tmp_path.iterdir())


# what `adapters` 1.3.0 names the home of each bottleneck on other architectures, in the order attention, (cross), end
HOMES = {
    "roberta": ("roberta.encoder.layer.1.attention.output", "roberta.encoder.layer.1.output"),
    "deberta-v2": ("deberta.encoder.layer.1.attention.output", "deberta.encoder.layer.1.output"),
    "distilbert": (
        "distilbert.transformer.layer.1.attention_adapters",
        "distilbert.transformer.layer.1.output_adapters",
    ),
    "whisper": (
        "model.decoder.layers.1.attention_adapters",
        "model.decoder.layers.1.cross_attention_adapters",
        "model.decoder.layers.1.output_adapters",
    ),
}


@pytest.mark.parametrize("arch", list(HOMES))
def test_names_on_other_architectures(arch: str) -> None:
    from support.models import tiny

    behind, _ = adapterhub.homes(tiny(arch))
    assert tuple(behind.values())[-len(HOMES[arch]) :] == HOMES[arch] or set(HOMES[arch]) <= set(behind.values())
