"""fw extract: folders in, a LoRA, a table and one JSON object out."""

import json

import pytest


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, bert, table):
    """A fully fine-tuned classifier in a plain folder."""
    from featherweight.cli.main import main

    folder = tmp_path_factory.mktemp("full")
    argv = ["train", "--model", bert, "--data", table, "--output", folder / "run", "--method", "full"]
    argv += ["--epochs", 6, "--lr", "3e-3", "--batch", 8]
    assert main([str(a) for a in argv]) == 0
    assert main(["merge", "--adapter", str(folder / "run"), "--output", str(folder / "plain")]) == 0
    return folder / "plain"


def test_extract_writes_an_adapter_that_predicts_like_the_tuned_model(fw, tuned, bert, table, tmp_path):
    out = tmp_path / "lora"
    result = fw("extract", tuned, bert, "--rank", 32, "--output", out, "--data", table, "--json")
    assert result.code == 0, result.err
    found = result.json
    assert found["kept"] == pytest.approx(1)
    assert found["head"] is True
    assert found["scores"]["tuned"]["accuracy"] > 0.9
    assert found["scores"]["extracted"]["loss"] < found["scores"]["base"]["loss"]
    assert {m["module"].rpartition(".")[2] for m in found["modules"]} >= {"query", "dense", "word_embeddings"}
    assert all(m["singular_values"] == sorted(m["singular_values"], reverse=True) for m in found["modules"])
    assert all("bias" in t["tensor"] or "LayerNorm" in t["tensor"] for t in found["left"])
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    scores = fw("eval", "--adapter", out, "--data", table, "--json").json
    assert scores["loss"] == pytest.approx(found["scores"]["extracted"]["loss"], rel=1e-5)


def test_extract_shows_the_spectrum(fw, tuned, bert, tmp_path):
    shown = fw("extract", tuned, bert, "--rank", 4, "--output", tmp_path / "lora").out
    assert "█" in shown
    assert "kept" in shown
    assert "left out" in shown


def test_extract_of_a_language_model(fw, llama, tmp_path):
    import torch
    import transformers as t

    model = t.AutoModelForCausalLM.from_pretrained(llama)
    model.model.layers[0].self_attn.q_proj.weight.data.mul_(1.1)
    model.save_pretrained(tmp_path / "tuned")
    t.AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "tuned")
    result = fw("extract", tmp_path / "tuned", llama, "--rank", 2, "--output", tmp_path / "lora", "--json")
    assert result.code == 0, result.err
    (module,) = result.json["modules"]
    assert module["module"] == "model.layers.0.self_attn.q_proj"
    assert module["relative"] == pytest.approx(0.1, rel=1e-4)
    values = torch.linalg.svdvals(
        t.AutoModelForCausalLM.from_pretrained(llama).model.layers[0].self_attn.q_proj.weight.detach()
    )
    assert module["singular_values"][:3] == pytest.approx((0.1 * values[:3]).tolist(), rel=1e-3)
    assert module["kept"] == pytest.approx(float(values[:2].square().sum() / values.square().sum()), rel=1e-3)


def test_extract_says_what_is_missing_or_wrong(fw, bert, llama, tmp_path):
    assert fw("extract").code == 2
    assert fw("extract", bert, bert, "--output", tmp_path / "a").code == 2
    assert fw("extract", llama, bert, "--output", tmp_path / "a").code == 2
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").touch()
    assert "already" in fw("extract", bert, llama, "--output", tmp_path / "b").err
