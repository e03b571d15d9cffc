"""`--task` and its options on `fw eval` and `fw predict`: those of `fw train`, read and refused alike."""

import json

import pytest


@pytest.fixture(scope="module")
def masked(tmp_path_factory, words):
    """A tiny masked language model."""
    import torch
    import transformers as t

    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(7)
    config = t.BertConfig(vocab_size=23, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    t.BertForMaskedLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"prompt": f"good {w}", "completion": f"bad {w}"} for w in ("inn", "pub", "city", "food")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def writer(tmp_path_factory, llama, texts):
    """An adapter of CausalLM(max_new_tokens=7)."""
    from featherweight.cli.main import main

    folder = tmp_path_factory.mktemp("writer") / "run"
    argv = ["train", "--model", llama, "--data", texts, "--task", "causallm", "--task.max_new_tokens", 7, "--steps", 1,
            "--output", folder]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    return folder


def test_options_of_a_named_task(fw, llama, texts):
    asked = ("predict", "--model", llama, "--data", texts, "--task", "causallm", "--json")
    three = fw(*asked, "--task.max_new_tokens", 3).json["rows"]
    nine = fw(*asked, "--task.max-new-tokens=9").json["rows"]
    assert all(len(row["text"].split()) <= 3 for row in three)
    assert any(len(row["text"].split()) > 3 for row in nine)
    assert all(b["text"].startswith(a["text"]) for a, b in zip(three, nine, strict=True))


def test_options_change_the_task_on_record(fw, writer, texts):
    own = fw("predict", "--adapter", writer, "--data", texts, "--json").json["rows"]
    asked = fw("predict", "--adapter", writer, "--data", texts, "--task.max_new_tokens", 2, "--json").json["rows"]
    assert any(2 < len(row["text"].split()) <= 7 for row in own)
    assert all(len(row["text"].split()) <= 2 for row in asked)


def test_a_task_named_as_on_record_keeps_what_is_not_said(adapter):
    from featherweight.cli.base import opened

    values = json.dumps({"task.type": ["classification", "--task"], "task.pool": ["own", "--task.pool"]})
    _, task = opened(adapter, None, values, "cpu")
    assert task.labels == ("no", "yes")


def test_eval_takes_them_too(fw, llama, tmp_path):
    file = tmp_path / "choices.jsonl"
    file.write_text('{"text": "food near the", "choices": ["river", "city pub"], "label": 1}\n')
    asked = ("eval", "--model", llama, "--data", file, "--task", "choices", "--json")
    whole, two = fw(*asked), fw(*asked, "--task.unlikelihood", 0)
    assert (whole.code, two.code) == (0, 0), whole.err + two.err
    assert whole.json["loss"] > two.json["loss"] > 0


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_wrong_options_are_told_alike(fw, llama, texts, tmp_path, command):
    more = ["--output", tmp_path / "out"] if command == "train" else []
    words = ["--task", "causallm", "--task.max_new_token", 3, "--task.max_new_tokens", "few"]
    result = fw(command, "--model", llama, "--data", texts, *words, *more, "--json")
    assert result.code == 2
    found = {p["where"]: p for p in result.json["problems"]}
    assert set(found) == {"--task.max_new_token", "--task.max_new_tokens"}
    assert "did you mean 'max_new_tokens'" in found["--task.max_new_token"]["fix"]


def test_an_unknown_task_and_an_option_of_none(fw, adapter, table):
    asked = ("eval", "--adapter", adapter, "--data", table)
    assert "did you mean 'classification'" in fw(*asked, "--task", "classify").err
    wrong = fw(*asked, "--task.overlpa", 3)
    assert wrong.code == 2
    assert "did you mean 'overlap'" in wrong.err
    other = fw(*asked, "--task.overlap", 3)
    assert other.code == 2
    assert "--task.overlap: unknown key" in other.err


@pytest.mark.parametrize("task", ["classification", "multiplechoice", "questionanswering", "tokenclassification",
                                  "multilabel", "regression"])  # fmt: skip
@pytest.mark.parametrize("kind", ["bert", "masked"])
def test_a_model_without_the_head_is_refused_and_told_the_way(fw, request, tmp_path, kind, task):
    rows = {
        "multiplechoice": {"text": "food", "choices": ["good", "bad"], "label": 0},
        "questionanswering": {"question": "food", "context": "good inn", "answer": "inn"},
        "tokenclassification": {"tokens": ["good", "inn"], "tags": ["O", "B-X"]},
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(rows.get(task, {"text": "good food"})) + "\n")
    result = fw("predict", "--model", request.getfixturevalue(kind), "--data", file, "--task", task)
    assert result.code == 2, result.out
    assert "head for this task" in result.err
    assert "train" in result.err
    assert "Error" not in result.err


def test_a_chain_of_thought_is_shown(fw, llama, tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text('{"prompt": "good inn", "completion": "warm #### city"}\n')
    asked = ("predict", "--model", llama, "--data", file, "--task", "chainofthought", "--task.max_new_tokens", 5)
    (row,) = fw(*asked, "--json").json["rows"]
    assert row["text"] == ""  # no mark, no answer
    assert row["rationale"]
    assert row["rationale"].split()[0] in fw(*asked).out


@pytest.mark.parametrize("columns", [{"question": "food", "context": "good inn"}, {"anchor": "food"}])
def test_rows_are_known_by_what_they_ask(columns):
    from featherweight.cli.predict_command import known_by
    from featherweight.data.read import read

    more = {"positive": "good inn"} if "anchor" in columns else {"answer": "inn"}
    assert known_by(read([{**columns, **more}]), None, None) == list(columns)


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_long_work_says_how_far_it_is(fw, llama, texts, monkeypatch, command):
    clock = iter(range(0, 10**6, 7))
    monkeypatch.setattr("featherweight.evaluate.progress.monotonic", lambda: float(next(clock)))
    words = ["--task", "causallm", "--task.max_new_tokens", 2, "--batch", 1]
    result = fw(command, "--model", llama, "--data", texts, *words, "--json")
    assert result.code == 0, result.err
    assert f"{command}: 1 of 4 rows, about 21 s left" in result.err
    assert "4 of 4" not in result.err
