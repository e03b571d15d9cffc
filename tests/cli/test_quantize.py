"""`fw quantize` and `--quantize`: from file to file, and all mistakes at once."""

import json
import math

import pytest
import torch

import featherweight as fw_api
from featherweight.quant import Quantized

PROBLEM = ("what", "where", "expected", "got", "fix")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"good food near river {w}"}) + "\n" for w in ("inn", "pub", "city")))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory, llama):
    from featherweight.cli.main import main

    place = tmp_path_factory.mktemp("codes") / "nf4"
    argv = ["quantize", llama, "--scheme", "nf4", "--scheme.block", "32", "--scheme.double", "--output", place]
    assert main([str(a) for a in argv]) == 0
    return place


def test_a_folder_of_codes(folder, llama):
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json",
                                                  "quantization_report.json"}  # fmt: skip
    model = fw_api.load_base(folder)
    schemes = {m.scheme for m in model.modules() if isinstance(m, Quantized)}
    assert schemes == {fw_api.NF4(block=32, double=True)}
    assert model.tokenizer.get_vocab() == fw_api.load_base(llama).tokenizer.get_vocab()
    report = json.loads((folder / "quantization_report.json").read_text())
    assert len(report["layers"]) == 14


def test_what_it_says(fw, llama, tmp_path):
    shown = fw("quantize", llama, "--scheme", "absmax", "--output", tmp_path / "q", "--skip", "down,layers.0")
    assert shown.code == 0, shown.err
    assert "Absmax(): 6 layers" in shown.out
    assert "skip: layers.0" in shown.out
    assert " query " in shown.out
    assert max(map(len, shown.out.splitlines()[:8])) <= 80


def test_json_is_one_object(fw, llama, tmp_path, texts):
    got = fw("quantize", llama, "--scheme", "fp4", "--output", tmp_path / "q", "--calibration", texts, "--json").json
    assert got["command"] == "quantize"
    assert got["scheme"] == {"type": "fp4"}
    assert len(got["layers"]) == 14
    assert all(0 < layer["output_error"] < 1 for layer in got["layers"])
    assert got["bytes_after"] < got["bytes_before"]
    assert math.isfinite(got["sqnr"])


@pytest.mark.parametrize(("layout", "flags", "method"), [
    ("bitsandbytes", ["nf4", "--scheme.double"], "bitsandbytes"),
    ("bitsandbytes", ["llmint8"], "bitsandbytes"),
    ("gptq", ["gptq", "--scheme.group", "16"], "gptq"),
])  # fmt: skip
def test_layouts_of_other_libraries(fw, llama, tmp_path, texts, layout, flags, method):
    """The same codes under their names, read back as they are: nothing of ours in the config."""
    flags = ["quantize", llama, "--scheme", *flags, *(["--calibration", texts] if layout == "gptq" else [])]
    for name in ("featherweight", layout):
        got = fw(*flags, "--format", name, "--output", tmp_path / name, "--json").json
        assert got["format"] == name
    config = json.loads((tmp_path / layout / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == method
    assert config.get("checkpoint_format", layout) == layout
    assert (tmp_path / layout / "quantization_report.json").is_file()
    ids = torch.arange(3, 12)[None]
    mine, theirs = (fw_api.load_base(tmp_path / name, fw_api.CausalLM()) for name in ("featherweight", layout))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, mine(ids).logits, rtol=1e-3, atol=1e-3)
    assert {type(m.scheme) for m in theirs.modules() if isinstance(m, Quantized)} == {
        type(m.scheme) for m in mine.modules() if isinstance(m, Quantized)
    }


def test_what_a_layout_cannot_hold(fw, llama, tmp_path, texts):
    def said(*flags):
        shown = fw("quantize", llama, "--output", tmp_path / "q", *flags, "--json")
        assert shown.code == 2
        assert not (tmp_path / "q").exists()
        return [[p[k] for k in ("what", "where")] for p in shown.json["problems"]]

    assert said("--scheme", "absmax", "--format", "bitsandbytes") == [["bitsandbytes has no such format", "--format"]]
    assert said("--scheme", "nf4", "--scheme.block", "48", "--format", "bitsandbytes") == [
        ["bitsandbytes has no such block", "--format"]
    ]
    assert said("--scheme", "nf4", "--format", "gptq") == [["GPTQ files have no such format", "--format"]]
    assert said("--scheme", "nf4", "--format", "awq") == [["unknown format", "--format"]]
    odd = ["--scheme", "gptq", "--scheme.bits", "3", "--calibration", texts, "--format", "gptq_v2", "--skip", "down"]
    assert {what for what, _ in said(*odd)} == {"does not fill 32-bit words"}


def test_without_anything_the_formats_are_listed(fw):
    shown = fw("quantize")
    assert shown.code == 0
    known = fw("quantize", "--json").json["schemes"]
    assert set(known) >= {"nf4", "fp4", "absmax", "gptq", "llmint8"}
    assert known["nf4"]["bits"] == 4.5
    assert all(name in shown.out for name in known)


def test_calibrated_formats(fw, llama, tmp_path, texts):
    result = fw("quantize", llama, "--scheme", "gptq", "--output", tmp_path / "a")
    assert result.code == 2
    assert "--calibration: the number format is calibrated on data" in result.err
    done = fw("quantize", llama, "--scheme", "gptq", "--scheme.group", 16, "--output", tmp_path / "b",
              "--calibration", texts)  # fmt: skip
    assert done.code == 0
    assert f"quantize: measuring the layers on up to 128 rows of {texts} …" in done.err
    assert "GPTQ(group=16)" in repr(fw_api.load_base(tmp_path / "b"))


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture(fw, llama, tmp_path, kind):
    file = tmp_path / "maps" / f"map.{kind}"
    assert fw("quantize", llama, "--scheme", "nf4", "--output", tmp_path / "q", "--picture", file).code == 0
    head = file.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if kind == "png" else b"<svg" in file.read_bytes()[:600]
    assert file.stat().st_size > 5000


def test_all_mistakes_at_once(fw, llama, tmp_path):
    result = fw("quantize", llama, "--scheme", "nf4", "--scheme.blok", 32, "--scheme.double", "maybe", "--rows", 0,
                "--picture", "map.gif", "--json")  # fmt: skip
    assert result.code == 2
    said = {p["where"]: p for p in result.json["problems"]}
    assert set(said) == {"--scheme.blok", "--scheme.double", "--rows", "--picture", "--output"}
    assert said["--scheme.blok"]["fix"] == "did you mean 'block'?"
    assert fw("quantize", llama, "--scheme", "nf5", "--output", tmp_path / "x").err == (
        "--scheme: unknown number format; got 'nf5'; did you mean 'nf4'?\n"
    )
    assert "--scheme: a value is missing" in fw("quantize", llama, "--scheme").err
    assert "which number format?" in fw("quantize", llama, "--scheme", "none", "--output", tmp_path / "x").err
    assert "block" in fw("quantize", llama, "--scheme", "nf4", "--scheme.block", 0, "--output", tmp_path / "x").err
    assert "--shceme" in fw("quantize", llama, "--shceme", "nf4", "--output", tmp_path / "x").err
    assert not (tmp_path / "x").exists()


def test_what_is_there_is_not_written_over(fw, folder, llama, tmp_path):
    before = (folder / "model.safetensors").read_bytes()
    result = fw("quantize", llama, "--scheme", "absmax", "--output", folder)
    assert result.code == 2
    assert "is there already" in result.err
    assert (folder / "model.safetensors").read_bytes() == before
    again = fw("quantize", folder, "--scheme", "absmax", "--output", tmp_path / "again")
    assert again.code == 2
    assert "quantized with another scheme" in again.err
    same = fw(
        "quantize", folder, "--scheme", "nf4", "--scheme.block", 32, "--scheme.double", "--output", tmp_path / "s"
    )
    assert same.code == 2
    assert "is quantized already" in same.err
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite(fw, llama, tmp_path):
    model = fw_api.load_base(llama)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "bad")
    model.tokenizer.save_pretrained(tmp_path / "bad")
    result = fw("quantize", tmp_path / "bad", "--scheme", "nf4", "--output", tmp_path / "q")
    assert result.code == 2
    assert "model.layers.1.mlp.up_proj.weight: values that are not finite; got 1 of 1,536" in result.err
    assert not (tmp_path / "q").exists()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    line = {"prompt": "name food", "completion": "good inn"}
    file.write_text("".join(json.dumps(line) + "\n" for _ in range(8)))
    return file


@pytest.fixture(scope="module")
def qlora(tmp_path_factory, llama, rows):
    """A QLoRA from the command line."""
    from featherweight.cli.main import main

    place = tmp_path_factory.mktemp("qlora") / "run"
    argv = ["train", "--model", llama, "--data", rows, "--output", place, "--quantize", "nf4", "--quantize.double",
            "--method", "lora", "--method.targets", "linear", "--method.rank", 2, "--precision", "bf16",
            "--checkpointing", "--steps", 4, "--batch", 4, "--lr", "1e-2", "--checkpoint-every", 2]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    return place


def codes(model):
    return {p: m.scheme for p, m in model.named_modules() if isinstance(m, Quantized)}


def test_qlora_from_file_to_file(fw, qlora, rows, tmp_path):
    text = (qlora / "run.toml").read_text()
    assert '[quantize]\ntype = "nf4"\ndouble = true\n' in text
    assert "kept as `NF4(double=True)`" in (qlora / "README.md").read_text()
    model = fw_api.load_model(qlora)
    assert set(codes(model).values()) == {fw_api.NF4(double=True)}
    assert len(codes(model)) == 14
    first = fw("eval", "--adapter", qlora, "--data", rows, "--json").json
    again = fw("train", qlora / "run.toml", "--output", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert fw("eval", "--adapter", tmp_path / "again", "--data", rows, "--json").json["loss"] == first["loss"]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).exists()


def test_the_base_without_codes(fw, qlora, rows):
    codes_loss = fw("eval", "--adapter", qlora, "--data", rows, "--json").json["loss"]
    plain = fw("eval", "--adapter", qlora, "--data", rows, "--quantize", "none", "--json")
    assert plain.code == 0, plain.err
    assert 0 < abs(plain.json["loss"] - codes_loss) < 0.5
    assert not codes(fw_api.load_model(qlora, quantize="none"))
    other = fw("eval", "--adapter", qlora, "--data", rows, "--quantize", "absmax", "--json").json["loss"]
    assert other not in (codes_loss, plain.json["loss"])


def test_a_stopped_run_is_resumed_to_the_same_bytes(fw, qlora, llama, rows, tmp_path):
    import shutil

    part = tmp_path / "part"
    shutil.copytree(qlora, part)
    shutil.rmtree(part / "checkpoints" / "step-4")
    done = fw("train", part / "run.toml", "--output", part, "--resume")
    assert done.code == 0, done.err
    assert "after step 2" in done.err
    from safetensors.torch import load_file

    one, other = (load_file(p / "adapter_model.safetensors") for p in (qlora, part))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    shutil.rmtree(part / "checkpoints" / "step-4")
    wrong = fw("train", part / "run.toml", "--output", part, "--resume", "--quantize", "absmax")
    assert wrong.code == 2
    assert "changed since the run began" in wrong.err


def test_going_on_with_an_adapter_keeps_its_base(fw, qlora, rows, tmp_path):
    assert fw("train", "--from", qlora, "--data", rows, "--output", tmp_path / "more", "--steps", 1).code == 0
    assert set(codes(fw_api.load_model(tmp_path / "more")).values()) == {fw_api.NF4(double=True)}


def test_merged_it_is_a_plain_folder(fw, qlora, rows, tmp_path):
    import transformers

    want = fw("eval", "--adapter", qlora, "--data", rows, "--json").json["loss"]
    shown = fw("merge", "--adapter", qlora, "--output", tmp_path / "plain")
    assert shown.code == 0, shown.err
    assert "as decoded" in shown.out
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not codes(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain"))
    assert fw("eval", "--model", tmp_path / "plain", "--data", rows, "--json").json["loss"] == pytest.approx(
        want, abs=1e-5
    )


def test_peft_reads_the_adapter(qlora, llama):
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(llama)
    theirs = peft.PeftModel.from_pretrained(base, str(qlora)).eval()
    ours = fw_api.load_model(qlora, quantize="none")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-5)


def test_a_quantized_folder_needs_no_flag(fw, folder, rows, tmp_path):
    place = tmp_path / "run"
    done = fw("train", "--model", folder, "--data", rows, "--output", place, "--steps", 2, "--method.rank", 2)
    assert done.code == 0, done.err
    assert "[quantize]" not in (place / "run.toml").read_text()
    assert set(codes(fw_api.load_model(place)).values()) == {fw_api.NF4(block=32, double=True)}
    assert fw("generate", "--adapter", place, "--prompt", "name food", "--tokens", 3).code == 0


def test_the_flag_everywhere(fw, llama, rows, adapter):
    assert fw("generate", "--model", llama, "--prompt", "name", "--tokens", 2, "--quantize", "nf4").code == 0
    assert fw("predict", "good inn", "--adapter", adapter, "--quantize", "absmax", "--quantize.bits", 4).code == 0
    wrong = fw(
        "eval", "--model", llama, "--data", rows, "--quantize", "nf4", "--quantize.bloc", 3, "--quantize.double", "x"
    )
    assert wrong.code == 2
    assert "--quantize.bloc: unknown key; did you mean 'block'?" in wrong.err
    assert "--quantize.double: wrong value" in wrong.err
    none = fw("eval", "--model", llama, "--data", rows, "--quantize", "none", "--quantize.block", 3)
    assert "--quantize.block: an option of no number format" in none.err


def test_a_file_with_mistakes(fw, llama, rows, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        f'model = "{llama}"\ndata = "{rows}"\n\n[quantize]\ntype = "nf4"\nblok = 32\ndouble = 3\nskip = 4\n'
    )
    result = fw("train", file, "--output", tmp_path / "out")
    assert result.code == 2
    for said in ("run.toml:6:quantize.blok: unknown key", "run.toml:7:quantize.double: wrong value",
                 "run.toml:8:quantize.skip: wrong value"):  # fmt: skip
        assert said in result.err
    file.write_text(f'model = "{llama}"\ndata = "{rows}"\nsteps = 1\n[quantize]\ntype = "nf4"\nskip = ["down"]\n')
    assert fw("train", file, "--output", tmp_path / "out").code == 0
    assert len(codes(fw_api.load_model(tmp_path / "out"))) == 12
    assert fw("train", file, "--output", tmp_path / "other", "--quantize", "none").code == 0
    assert not codes(fw_api.load_model(tmp_path / "other"))


def test_from_python(llama, rows, tmp_path):
    run = fw_api.train(str(llama), str(rows), output=tmp_path / "a", method=fw_api.LoRA(rank=2), steps=1,
                       quantize=fw_api.NF4(block=32))  # fmt: skip
    assert run.steps == 1
    assert set(codes(fw_api.load_model(tmp_path / "a")).values()) == {fw_api.NF4(block=32)}
    with pytest.raises(fw_api.InputError, match=r"call fw\.quantize"):
        fw_api.train(fw_api.load_base(llama), str(rows), method=fw_api.LoRA(), quantize="nf4", steps=1)
