"""A base quantized as it is read: the same codes as from the live model, in the memory of the codes; folders of codes
restored exactly, and refused with names where anything is off.
"""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.large import filled_llama, printed
from support.models import tiny

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.quant import Quantized

SIZE = {"vocab_size": 24, "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> Path:
    """stories260k in NF4, as `save_pretrained` writes it."""
    place = tmp_path_factory.mktemp("codes") / "nf4"
    model = fw.load_base(stories, fw.CausalLM(), quantize=fw.NF4())
    model.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def equal(a: Any, b: Any) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("scheme", [fw.NF4(), fw.NF4(block=32, double=True), fw.Absmax(), fw.ZeroPoint(), fw.FP4()])
def test_streamed_is_quantized(stories: Path, scheme: Any) -> None:
    live = fw.load_base(stories, fw.CausalLM())
    report = fw.quantize(live, scheme)
    streamed = fw.load_base(stories, fw.CausalLM(), quantize=scheme)
    assert equal(live, streamed)
    assert streamed.quantization_report.to_dict() == report.to_dict()
    assert streamed.name_or_path == str(stories)
    assert not streamed.training


def test_codes_are_those_of_the_file_in_any_dtype(stories: Path) -> None:
    whole, half = (fw.load_base(stories, fw.CausalLM(), d, quantize=fw.NF4()) for d in ("fp32", "bf16"))
    for (path, a), (_, b) in zip(whole.named_modules(), half.named_modules(), strict=True):
        if isinstance(a, Quantized):
            assert all(torch.equal(a.packed[n], b.packed[n]) for n in a.packed), path
            assert (a.dtype, b.dtype) == (torch.float32, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32
    assert "_keep_in_fp32_modules_strict" not in vars(half)


def test_a_half_precision_file(stories: Path, tmp_path: Path) -> None:
    fw.load_base(stories, fw.CausalLM(), "bf16").save_pretrained(tmp_path)
    live = fw.load_base(tmp_path, fw.CausalLM(), "auto", tokenizer=fw.load_base(stories).tokenizer)
    fw.quantize(live, fw.NF4())
    streamed = fw.load_base(tmp_path, fw.CausalLM(), "auto", tokenizer=live.tokenizer, quantize="nf4")
    assert streamed.dtype == torch.bfloat16
    assert equal(live, streamed)


def test_the_loss_moves_a_little(stories: Path, data_dir: Path) -> None:
    text = (data_dir / "tinystories_sample" / "tinystories.txt").read_text()
    rows = [{"text": part} for part in text.split("\n\n") if len(part) > 200][:12]
    losses = {
        s: fw.evaluate(fw.load_base(stories, fw.CausalLM(), quantize=s), rows).loss for s in (None, "absmax", "nf4")
    }
    assert losses[None] is not None
    assert abs(losses["absmax"] - losses[None]) < 0.005 * losses[None]
    assert losses[None] < losses["nf4"] < 1.12 * losses[None]  # a quarter of a million parameters have little to spare


def test_an_encoder_gets_its_head(bert: Path) -> None:
    task = fw.Classification(labels=("a", "b"))
    plain, codes = fw.load_base(bert, task), fw.load_base(bert, task, quantize=fw.NF4())
    assert torch.equal(plain.classifier.weight, codes.classifier.weight)  # drawn from the same seed
    assert plain.new_tensors == codes.new_tensors
    assert sum(isinstance(m, Quantized) for m in codes.modules()) == 12


@pytest.mark.parametrize("change", ["nothing", "eval", "train", "cast"])
def test_saved_again_it_is_the_same_bytes(folder: Path, tmp_path: Path, change: str) -> None:
    model = fw.load_base(folder, fw.CausalLM())
    ids = torch.arange(3, 12)[None]
    if change == "eval":
        with torch.no_grad():
            model.eval()(input_ids=ids)
    elif change == "train":
        fw.attach(model, fw.LoRA(rank=2))
        model.train()(input_ids=ids, labels=ids).loss.backward()
        fw.detach(model)
        model.eval()
    elif change == "cast":
        model.double().float()
    model.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_folder_says_what_it_is(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["format"]) == ("featherweight", 1)
    (group,) = said["groups"]
    assert group["scheme"]["type"] == "nf4"
    assert group["scheme"]["block"] == 64
    assert said["kept"] == ["lm_head"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert {f"{path}.{n}" for path in group["modules"] for n in ("codes", "absmax")} < keys
    assert not [k for k in keys if k.rpartition(".")[0] in group["modules"] and k.endswith(".weight")]


def test_transformers_itself_reads_it(folder: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert equal(model, fw.load_base(folder, fw.CausalLM()))
    again = fw.dequantize(model)
    assert not [m for m in again.modules() if isinstance(m, Quantized)]


def test_a_trunk_fits_a_head_and_the_other_way_round(bert: Path, tmp_path: Path) -> None:
    trunk = fw.load_base(bert, quantize=fw.NF4(), tokenizer=None)
    trunk.save_pretrained(tmp_path / "trunk")
    trunk.tokenizer.save_pretrained(tmp_path / "trunk")
    task = fw.Classification(labels=("a", "b", "c"))
    headed = fw.load_base(tmp_path / "trunk", task)
    assert equal(headed.bert, trunk) or equal(headed.bert.encoder, trunk.encoder)
    headed.save_pretrained(tmp_path / "headed")
    import transformers

    bare = transformers.AutoModel.from_pretrained(tmp_path / "headed")
    assert equal(bare.encoder, trunk.encoder)


@pytest.mark.parametrize("arch", ["gpt2", "mixtral", "t5", "opt", "phi3"])
def test_other_architectures(arch: str, tmp_path: Path, words: Any) -> None:
    plain = tiny(arch)
    plain.save_pretrained(tmp_path / "float", max_shard_size="30KB")
    words.save_pretrained(tmp_path / "float")
    assert (tmp_path / "float" / "model.safetensors.index.json").is_file()
    streamed = fw.load_base(tmp_path / "float", quantize=fw.NF4(block=32))
    fw.quantize(plain, fw.NF4(block=32))
    assert equal(plain, streamed)
    streamed.save_pretrained(tmp_path / "codes", max_shard_size="20KB")
    words.save_pretrained(tmp_path / "codes")
    assert equal(fw.load_base(tmp_path / "codes"), streamed)


def test_experts_are_read_one_by_one(tmp_path: Path, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of one tensor for each expert: their stack, which the model has, is never in memory."""
    import weakref

    from featherweight.interop.stream import Stored

    plain = tiny("mixtral")
    plain.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    read, alive, most = Stored.__getitem__, [], [0]

    def watched(stored: Stored, key: Any) -> torch.Tensor:
        made = read(stored, key)
        alive.append(weakref.ref(made))
        if len(stored.shape) == 2:
            most.append(sum(t.numel() for ref in alive if (t := ref()) is not None and t.dim() == 2))
        return made

    monkeypatch.setattr(Stored, "__getitem__", watched)
    streamed = fw.load_base(tmp_path, quantize=fw.NF4(block=32))
    matrix = plain.model.layers[0].mlp.experts.down_proj[0].numel()
    kept = sum(p.numel() for p in streamed.parameters() if p.dim() == 2)  # embedding, head, routers
    assert max(most) <= kept + 3 * matrix
    fw.quantize(plain, fw.NF4(block=32))
    assert equal(plain, streamed)
    assert streamed.quantization_report.to_dict() == plain.quantization_report.to_dict()


@pytest.fixture(scope="session")
def words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def edit(place: Path, change: Any) -> None:
    """Write the tensors again after `change(tensors)`."""
    tensors = load_file(place / "model.safetensors")
    change(tensors)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})


def refused(place: Path) -> str:
    with pytest.raises(InputError) as caught:
        fw.load_base(place, fw.CausalLM())
    return str(caught.value)


Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.3.self_attn.k_proj"


def test_everything_wrong_with_a_file_at_once(copied: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{Q}.absmax"]
        tensors[f"{K}.codes"] = tensors[f"{K}.codes"].int()
        tensors["model.layers.1.mlp.up_proj.codes"] = tensors["model.layers.1.mlp.up_proj.codes"][:-3].clone()
        tensors["model.layers.2.mlp.up_proj.zeros"] = torch.zeros(3)

    edit(copied, change)
    said = refused(copied).splitlines()
    assert len(said) == 4
    assert any(line.startswith(f"{Q}.absmax: missing tensor") for line in said)
    assert any(line.startswith(f"{K}.codes: not what its scheme stores") and "int32" in line for line in said)
    assert any("up_proj.codes" in line and "(5504,)" in line and "(5501,)" in line for line in said)
    assert any("model.layers.2.mlp.up_proj.zeros: extra tensor" in line for line in said)


def test_corrupted_codes_and_scales(copied: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.codes"][7] ^= 1
        tensors[f"{K}.absmax"][3] = math.nan

    edit(copied, change)
    said = refused(copied)
    assert f"{Q}: corrupted codes" in said
    assert f"{K}.absmax: scales that are not finite" in said
    assert "copy the folder again" in said


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda c: c.update(format=2), "another version; expected 1; got 2"),
        (lambda c: c["groups"][0]["scheme"].update(type="nf5"), "unknown type; got 'nf5'; did you mean 'nf4'"),
        (lambda c: c["groups"][0]["scheme"].update(block=32), "absmax: not what its scheme stores"),
        (
            lambda c: c["groups"][0]["modules"].update({"model.layers.9.x": "0"}),
            "a quantized layer that the model lacks",
        ),
        (lambda c: c["groups"][0]["modules"].pop(Q), "extra|unexpected|lacks"),
        (lambda c: c.update(gruops=[]), "unknown key; did you mean 'groups'"),
        (lambda c: c["groups"].append({"scheme": {"type": "nf4"}}), "not a group of quantized modules"),
    ],
)
def test_a_record_that_does_not_fit(copied: Path, change: Any, wanted: str) -> None:
    form = json.loads((copied / "config.json").read_text())
    change(form["quantization_config"])
    (copied / "config.json").write_text(json.dumps(form))
    assert re.search(wanted, refused(copied)), refused(copied)


def test_damaged_files(copied: Path, stories: Path, tmp_path: Path) -> None:
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[:-1000])
    assert "shorter than its header says" in refused(copied)
    (copied / "model.safetensors").write_bytes(whole[:100])
    assert "not a whole safetensors file" in refused(copied)
    (copied / "model.safetensors").unlink()
    assert "no weights in safetensors" in refused(copied)
    other = Path(shutil.copytree(stories, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors[f"{Q}.weight"][0, :5] = math.nan
    tensors[f"{K}.weight"] = torch.zeros(3, 4)
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError) as caught:
        fw.load_base(other, fw.CausalLM(), quantize=fw.NF4())
    said = str(caught.value)
    assert f"{Q}.weight: values that are not finite; got 5 of 4,096 NaN or inf" in said
    assert f"{K}.weight: misshapen tensor; expected (32, 64); got (3, 4)" in said


def test_a_missing_shard(stories: Path, tmp_path: Path) -> None:
    model = fw.load_base(stories, fw.CausalLM())
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    model.tokenizer.save_pretrained(tmp_path)
    assert equal(fw.load_base(tmp_path, quantize="nf4"), fw.load_base(stories, fw.CausalLM(), quantize="nf4"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    gone = sorted(set(index["weight_map"].values()))[1]
    (tmp_path / gone).unlink()
    with pytest.raises(InputError, match=f"{gone}: a shard is missing"):
        fw.load_base(tmp_path, quantize="nf4")


def test_what_cannot_be_asked(folder: Path, stories: Path) -> None:
    assert equal(fw.load_base(folder, quantize=fw.NF4()), fw.load_base(folder))  # it is that already
    with pytest.raises(InputError, match=r"quantized with another scheme; expected Absmax\(\); got NF4\(\)"):
        fw.load_base(folder, quantize="absmax")
    with pytest.raises(InputError, match=r"calibrated on data.*--calibration"):
        fw.load_base(stories, quantize=fw.GPTQ())
    with pytest.raises(InputError, match=r"skip: 'dwn' matches nothing"):
        fw.load_base(stories, quantize={"type": "nf4", "skip": "dwn"})


SCRIPT = """
import json, re, sys
from pathlib import Path
import featherweight as fw
def memory(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
small, large = sys.argv[1:]
fw.load_base(small, quantize=fw.NF4())
Path("/proc/self/clear_refs").write_text("5")
before = memory()
model = fw.load_base(large, quantize=fw.NF4())
print(json.dumps([memory() - before, model.quantization_report.after, model.quantization_report.before]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_that_of_the_codes(tmp_path: Path, words: Any) -> None:
    """Allowed beside the codes: five of the largest tensor in fp32 (the tensor, what encoding and decoding it takes in
    plain torch). The float model would be 70 of them."""
    for name, width, layers in (("small", 64, 1), ("large", 512, 16)):
        model = filled_llama(width, layers, **SIZE)
        model.save_pretrained(tmp_path / name, max_shard_size="60MB")
        words.save_pretrained(tmp_path / name)
    peak, after, before = json.loads(printed(SCRIPT, tmp_path / "small", tmp_path / "large"))
    largest = 512 * 1408 * 4
    assert before > 200e6
    assert after < 30e6
    assert peak < after + 5 * largest < before / 3
