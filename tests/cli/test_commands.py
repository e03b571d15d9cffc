"""Every verb, once through: what it prints, what it writes, its exit code."""

import csv
import json

import pytest


def test_train_needs_a_model_and_data_and_nothing_else(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (adapter / "run.toml").read_text().count("classification") == 1
    assert (adapter / "metrics.jsonl").is_file()


def test_run_toml_runs_again_to_the_same_weights(fw, adapter, tmp_path):
    import torch
    from safetensors.torch import load_file

    again = fw("train", adapter / "run.toml", "--output", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_eval_scores(fw, adapter, table):
    result = fw("eval", "--adapter", adapter, "--data", table, "--json")
    assert result.code == 0
    assert result.json["rows"] == 40
    assert result.json["accuracy"] > 0.9
    assert fw("eval", "--adapter", adapter, "--data", table).out.count("accuracy") == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_predict_keeps_the_columns_and_adds_the_answer(fw, adapter, tmp_path, suffix):
    (tmp_path / "new.csv").write_text("number,text\n1,food good inn\n2,food bad inn\n")
    out = tmp_path / f"answers.{suffix}"
    assert fw("predict", "--adapter", adapter, "--data", tmp_path / "new.csv", "--output", out).code == 0
    text = out.read_text()
    rows = list(csv.DictReader(text.splitlines())) if suffix == "csv" else list(map(json.loads, text.splitlines()))
    assert [row["label"] for row in rows] == ["yes", "no"]
    assert [row["number"] for row in rows] == ["1", "2"]
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)


def test_predict_leaves_a_label_that_is_there(fw, adapter, table, tmp_path):
    fw("predict", "--adapter", adapter, "--data", table, "--output", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["label"] for r in rows] == ["yes" if i % 2 else "no" for i in range(40)]
    assert {r["predicted_label"] for r in rows} == {"yes", "no"}


def test_predict_shows_the_texts_of_the_rows(fw, adapter, tmp_path):
    (tmp_path / "new.csv").write_text("number,text\n31,good staff\n32,bad staff\n")
    shown = fw("predict", "--adapter", adapter, "--data", tmp_path / "new.csv").out
    assert "good staff" in shown
    assert "31" not in shown


def test_predict_takes_sentences(fw, adapter):
    rows = fw("predict", "--adapter", adapter, "good staff", "bad staff", "--json").json["rows"]
    assert [row["label"] for row in rows] == ["yes", "no"]


def test_merge_gives_a_plain_folder_with_the_same_answers(fw, adapter, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from featherweight import load_model

    assert fw("merge", "--adapter", adapter, "--output", tmp_path / "plain").code == 0
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "plain")("good food bad", return_tensors="pt")
    words.pop("token_type_ids", None)
    with torch.no_grad():
        torch.testing.assert_close(plain(**words).logits, load_model(adapter)(**words).logits, atol=1e-5, rtol=1e-5)
    assert plain.config.id2label == {0: "no", 1: "yes"}
    again = fw("merge", "--adapter", adapter, "--output", tmp_path / "plain")
    assert again.code == 2
    assert "is there already" in again.err


def test_train_from_goes_on(fw, adapter, table, tmp_path):
    result = fw("train", "--from", adapter, "--data", table, "--steps", 2, "--output", tmp_path / "more", "--json")
    assert result.code == 0, result.err
    assert result.json["steps"] == 2
    first, second = ((folder / "adapter_model.safetensors").read_bytes() for folder in (adapter, tmp_path / "more"))
    assert first != second


def test_generate_from_a_tuned_decoder(fw, llama, tmp_path):
    rows = [{"prompt": "good", "completion": "food food"}, {"prompt": "bad", "completion": "inn"}] * 8
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    trained = fw("train", "--model", llama, "--data", tmp_path / "d.jsonl", "--method.targets", "linear",
                 "--epochs", 20, "--lr", "1e-2", "--output", tmp_path / "a", "--json")  # fmt: skip
    assert trained.code == 0, trained.err
    made = fw("generate", "--adapter", tmp_path / "a", "--prompt", "good", "--tokens", 6, "--json")
    assert made.code == 0, made.err
    assert made.json["answers"][0]["text"].split()[:2] == ["food", "food"]


def test_data_shows_what_is_trained(fw, llama, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "good", "completion": "food"}\n')
    shown = fw("data", tmp_path / "d.jsonl", "--model", llama)
    assert shown.code == 0, shown.err
    assert "⟦" in shown.out
    assert fw("data", tmp_path / "d.jsonl", "--json").json["rows"] == {"train": 1}
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "good", "completion": "food " * 99}))
    assert "cut: 1 rows lose 37 tokens" in fw("data", tmp_path / "long.jsonl", "--model", llama).out


def test_methods_come_from_the_classes(fw):
    found = fw("methods", "--json").json["methods"]
    assert {"full", "head", "bitfit", "layernorm", "lora", "ia3"} <= set(found)
    page = fw("methods", "lora").out
    assert "B A x" in page
    assert "--method.rank " in page
    wrong = fw("methods", "loar")
    assert wrong.code == 2
    assert "'lora'" in wrong.err


@pytest.mark.parametrize("width", [80, 120])
def test_screens_fit_the_terminal(fw, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for argv in (["--help"], ["train", "--help"], ["methods"], ["predict", "--help"]):
        assert max(map(len, fw(*argv).out.splitlines())) <= width, argv
