"""Whole folders: theirs read without their library, ours written for it, live models adopted. Bytes and outputs agree.

bitsandbytes is held to its training path (decode, then a float product), where in_features is not one of those that it
gets wrong on a CPU (a multiple of 16 but not of the block); int8 is compared by decoded weights, as it rounds inputs.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.foreign import four_bit
from torch import Tensor

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.quant.quantized import Quantized

pytest.importorskip("bitsandbytes")
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True},
    "int8": {"load_in_8bit": True},
}
IDS = torch.arange(3, 23)[None]


@pytest.fixture(scope="session")
def sources(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """stories260k, and a GPT-2, whose linear layers are Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    none = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=99, n_positions=32, **none)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return {"llama": stories, "gpt2": folder}


@pytest.fixture(scope="session")
def theirs(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """What transformers and bitsandbytes write, by (model, kind)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    made = {}
    for source, path in sources.items():
        for kind, options in KINDS.items():
            folder = tmp_path_factory.mktemp(f"{source}-{kind}")
            model = AutoModelForCausalLM.from_pretrained(path, quantization_config=BitsAndBytesConfig(**options))
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(sources["llama"]).save_pretrained(folder)
            made[source, kind] = folder
    return made


def live(folder: Path) -> Any:
    """The folder as transformers and bitsandbytes load it, on the path that is right on every CPU."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).train()


def base(folder: Path) -> Any:
    return fw.load_base(folder, tokenizer=Tokens())


class Tokens:
    """A tokenizer that nobody asks for anything."""

    pad_token_id = 0

    def __len__(self) -> int:
        return 1

    def save_pretrained(self, folder: Any) -> None:
        pass


def quantized(model: Any) -> dict[str, Any]:
    return {path: m for path, m in model.named_modules() if isinstance(m, Quantized)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["llama", "gpt2"])
def test_their_folder_loads_computes_alike_and_is_written_again_byte_for_byte(
    theirs: Any, source: str, kind: str, tmp_path: Path
) -> None:
    folder = theirs[source, kind]
    mine = base(folder).train()
    saved = load_file(folder / "model.safetensors")
    for path, module in quantized(mine).items():
        held = {k.removeprefix(f"{path}."): t for k, t in saved.items() if k.startswith(f"{path}.")}
        W = held["weight"] * held["SCB"][:, None] / 127 if kind == "int8" else four_bit(held)
        ours = module.scheme.decode(module.packed, module.shape, torch.float32)
        torch.testing.assert_close(ours, W, rtol=1e-6, atol=0)
    assert len(quantized(mine)) == sum(k.endswith((".SCB", "__nf4", "__fp4")) for k in saved) > 0
    if kind != "int8":
        torch.testing.assert_close(mine(IDS).logits, live(folder)(IDS).logits, rtol=1e-4, atol=5e-5)
    fw.save_quantized(mine, tmp_path, format="bitsandbytes")
    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() == saved.keys()
    assert all(again[k].dtype == saved[k].dtype and torch.equal(again[k], saved[k]) for k in saved)
    assert torch.equal(live(tmp_path)(IDS).logits, live(folder)(IDS).logits)


def test_none_of_it_needs_bitsandbytes(theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError):
        import bitsandbytes  # noqa: F401
    folder = theirs["llama", "nf4"]
    model = base(folder)
    fw.save_quantized(model, tmp_path, format="bitsandbytes")
    saved, again = (load_file(f / "model.safetensors") for f in (folder, tmp_path))
    assert all(torch.equal(again[k], saved[k]) for k in saved)
    fw.attach(model, fw.LoRA(rank=2))
    assert repr(model.model.layers[0].mlp.up_proj.scheme) == "NF4(double=True)"


def test_no_file_of_ours_imports_such_a_library() -> None:
    found = []
    for path in Path(fw.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.name}: {n}" for n in names if n.split(".")[0] in {"bitsandbytes", "torchao", "gptqmodel"}]
    assert not found


@pytest.mark.parametrize("source", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "scheme", [fw.NF4(), fw.NF4(double=True), fw.FP4(block=128, double=True), fw.LLMInt8(5.0)], ids=repr
)
def test_our_model_loads_there(sources: Any, source: str, scheme: Any, tmp_path: Path) -> None:
    mine = base(sources[source])
    fw.quantize(mine, scheme, skip="down")
    fw.save_quantized(mine.eval(), tmp_path, format="bitsandbytes")
    their = live(tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    for path, module in mine.named_modules():
        other = their.get_submodule(path)
        assert (type(other).__module__.startswith("bitsandbytes")) == isinstance(module, Quantized)
        assert isinstance(module, Quantized) or path not in quantized(mine)
    assert any("down_proj" in k or "mlp.c_proj" in k for k in kept)
    fw.adopt(their)
    for path, module in quantized(mine).items():
        there = their.get_submodule(path)
        assert there.packed.keys() == module.packed.keys()
        assert all(torch.equal(there.packed[n], t) for n, t in module.packed.items())
    assert torch.equal(their.train()(IDS).logits, mine.train()(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("evaluated", [False, True])
def test_a_live_model_is_adopted_over_its_codes(theirs: Any, kind: str, evaluated: bool, tmp_path: Path) -> None:
    model = live(theirs["llama", kind])
    codes = model.model.layers[0].self_attn.q_proj.weight.data
    if evaluated:  # the layers whose shape its eval mode takes are then in another order, with scales in bf16
        fw.adopt(other := live(theirs["llama", kind]))
        layer = model.model.layers[0].self_attn.q_proj.eval()
        layer(torch.randn(1, 2, 64))
    assert fw.adopt(model) is model
    layer = model.model.layers[0].self_attn.q_proj
    if evaluated:
        close = 8e-3 if kind != "int8" else 1e-6
        torch.testing.assert_close(layer.weight, other.model.layers[0].self_attn.q_proj.weight, rtol=close, atol=0)
        return
    assert layer.packed["codes"].data_ptr() == codes.data_ptr()
    mine = base(theirs["llama", kind]).train()
    assert torch.equal(model(IDS).logits, mine(IDS).logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(base(tmp_path).train()(IDS).logits, mine(IDS).logits)
    fw.attach(model, fw.LoRA(rank=2))
    with pytest.raises(InputError, match="adapters are attached"):
        fw.adopt(model)


def test_nothing_to_adopt(stories: Path) -> None:
    with pytest.raises(InputError, match="no quantized bitsandbytes layer"):
        fw.adopt(base(stories))


def edited(folder: Path, to: Path, change: Any) -> Path:
    """A copy of a folder with other tensors."""
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            (to / name).write_text((folder / name).read_text())
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def test_damage_of_several_layers_is_one_error(theirs: Any, tmp_path: Path) -> None:
    q, up = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[q] = tensors[q][:-1].clone()
        tensors[f"{up}.nested_quant_map"] = tensors[f"{up}.nested_quant_map"] * 1.1
        del tensors[f"{up}.absmax"]
        tensors["model.layers.2.mlp.up_proj.weight.quant_map"] *= 0.5

    with pytest.raises(InputError) as caught:
        base(edited(theirs["llama", "nf4"], tmp_path, change))
    assert sorted(p.where for p in caught.value.problems) == [
        q, f"{up}.absmax", "model.layers.2.mlp.up_proj.weight.quant_map",
    ]  # fmt: skip
    assert "another table than nf4's" in str(caught.value)


def test_a_folder_without_their_tensors_is_refused(theirs: Any, stories: Path, tmp_path: Path) -> None:
    edited(stories, tmp_path, lambda tensors: None)
    (tmp_path / "config.json").write_text((theirs["llama", "int8"] / "config.json").read_text())
    with pytest.raises(InputError, match=r"no tensor of bitsandbytes's"):
        base(tmp_path)


def test_what_their_files_cannot_hold_is_refused_at_once(stories: Path, tmp_path: Path) -> None:
    mine = base(stories)
    fw.quantize(mine, fw.NF4(block=48), targets="query")
    fw.quantize(mine, fw.Absmax(), targets="key")
    with pytest.raises(InputError) as caught:
        fw.save_quantized(mine, tmp_path / "out", format="bitsandbytes")
    assert "no such block" in str(caught.value)
    assert "no such format" in str(caught.value)
    assert len(caught.value.problems) == 2 * len(mine.model.layers)
    assert not (tmp_path / "out").exists()
    mixed = base(stories)
    fw.quantize(mixed, fw.NF4(), targets="query")
    fw.quantize(mixed, fw.LLMInt8(), targets="key")
    with pytest.raises(InputError, match="one format in a model"):
        fw.save_quantized(mixed, tmp_path / "out", format="bitsandbytes")
    with pytest.raises(InputError, match="did you mean 'bitsandbytes'"):
        fw.save_quantized(mixed, tmp_path / "out", format="bitsandbyte")
    with pytest.raises(InputError, match="nothing in the model is quantized"):
        fw.save_quantized(base(stories), tmp_path / "out")
    fw.attach(mixed, fw.LoRA(rank=2))
    with pytest.raises(InputError, match="adapters are attached"):
        fw.save_quantized(mixed, tmp_path / "out")


def calibration() -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 400, (4, 32), generator=g)} for _ in range(2)]


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(
    "scheme",
    [fw.GPTQ(group=32, symmetric=True), fw.GPTQ(bits=8, group=-1, symmetric=True), fw.GPTQ(group=32, act_order=True),
     fw.GPTQ(bits=2, group=32, act_order=True, static_groups=True, symmetric=True)],
    ids=repr,
)  # fmt: skip
def test_a_gptq_folder_comes_back(stories: Path, scheme: Any, form: str, tmp_path: Path) -> None:
    mine = base(stories)
    fw.quantize(mine, scheme, batches=calibration(), skip=r"mlp")  # 172 wide: fills no words in 3 bits, groups of 32
    if form == "gptq" and not scheme.symmetric:
        for module in quantized(mine).values():
            if (module.scheme.zeros(module.packed, module.shape[0]) == 0).any():
                with pytest.raises(InputError, match="cannot say 0"):
                    fw.save_quantized(mine, tmp_path, format=form)
                return
    fw.save_quantized(mine, tmp_path, format=form)
    said = json.loads((tmp_path / "quantize_config.json").read_text())
    assert said == json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (said["bits"], said["group_size"], said["checkpoint_format"]) == (scheme.bits, scheme.group, form)
    assert any(k.startswith("-:^model.layers.0.mlp") or "mlp" in k for k in said["dynamic"])
    again = base(tmp_path)
    assert quantized(again).keys() == quantized(mine).keys()
    for path, module in quantized(mine).items():
        other = again.get_submodule(path)
        torch.testing.assert_close(other.weight, module.weight, rtol=1e-3, atol=1e-6)  # scales in float16
    fw.save_quantized(again, tmp_path / "twice", format=form)
    first, second = (load_file(f / "model.safetensors") for f in (tmp_path, tmp_path / "twice"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_dynamic_says_what_is_other_in_one_layer() -> None:
    from featherweight.interop.quantized.gptq import layout_of, overridden

    said = {"bits": 4, "group_size": 128, "dynamic": {"-:lm_head": {}, r"+:.*\.1\..*up": {"bits": 8}, ".*down": {"group_size": 32}}}  # fmt: skip  # noqa: E501
    layouts = [layout_of(overridden(said, f"model.layers.1.mlp.{n}_proj")) for n in ("up", "down", "gate")]
    assert [(x.bits, x.size) for x in layouts] == [(8, 128), (4, 32), (4, 128)]


def test_an_awq_folder_is_read(stories: Path, tmp_path: Path) -> None:
    """Made by the layout's definition of a GPTQ folder's own integers: they decode to the same weights."""
    from featherweight.interop.quantized.gptq import AWQ_ORDER
    from featherweight.quant import bitstream

    mine = base(stories)
    fw.quantize(mine, fw.GPTQ(group=32), batches=calibration(), targets="attention")
    fw.save_quantized(mine, tmp_path, format="gptq_v2")

    def change(tensors: dict[str, Tensor]) -> None:
        for path, module in quantized(mine).items():
            codes = bitstream.unpack(module.packed["codes"], 4, module.shape[1]).T  # (in, out)
            zeros = bitstream.unpack(module.packed["zeros"], 4, module.shape[0])
            del tensors[f"{path}.g_idx"]
            order = torch.tensor(AWQ_ORDER).argsort()
            for name, values in (("qweight", codes), ("qzeros", zeros)):
                moved = values.unflatten(1, (-1, 8))[:, :, order].flatten(1)
                tensors[f"{path}.{name}"] = bitstream.pack(moved, 4).view(torch.int32)

    folder = tmp_path / "awq"
    folder.mkdir()
    edited(tmp_path, folder, change)
    form = json.loads((folder / "config.json").read_text())
    form["quantization_config"] = {
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(form))
    assert torch.equal(base(folder)(IDS).logits, base(tmp_path)(IDS).logits)


def test_biases_of_zeros_for_layers_that_have_none_are_passed_over(stories: Path, tmp_path: Path) -> None:
    mine = base(stories)
    fw.quantize(mine, fw.GPTQ(group=32, symmetric=True), batches=calibration(), targets="attention")
    fw.save_quantized(mine, tmp_path, format="gptq")
    name = "model.layers.0.self_attn.q_proj.bias"
    for value in (0.0, 1.0):
        folder = tmp_path / str(value)
        folder.mkdir()
        edited(tmp_path, folder, lambda tensors, value=value: tensors.update({name: torch.full((64,), value)}))
    assert torch.equal(base(tmp_path / "0.0")(IDS).logits, base(tmp_path)(IDS).logits)
    with pytest.raises(InputError, match=f"{name}: the checkpoint has a tensor that the model lacks"):
        base(tmp_path / "1.0")
