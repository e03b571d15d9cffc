"""Bad input through the commands that meet it: code 2 and words, or a run where it can be mended; nothing lost."""

import json
import shutil

import pytest


@pytest.fixture
def refused(fw):
    """refused(*argv, says=...): exit code 2, the words, no traceback."""

    def check(*argv, says):
        result = fw(*argv)
        assert result.code == 2, result.err
        for words in [says] if isinstance(says, str) else says:
            assert words.lower() in result.err.lower(), result.err
        assert "Traceback" not in result.err
        return result.err

    return check


@pytest.fixture
def start(bert, tmp_path):
    """The beginning of a `fw train` command; its output is tmp_path/o."""

    def words(data, model=bert, steps=1, output="o"):
        return ["train", "--model", model, "--data", data, "--output", tmp_path / output, "--steps", steps]

    return words


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_settings_and_targets_are_checked_all_at_once(refused, start, table):
    refused(*start(table), "--bacth", 4, "--sede", 1, "--lr", "fast", says=["'--batch'?", "'--seed'?", "--lr: wrong"])


def test_what_attaching_refuses_is_said_at_its_flag_once(refused, start, table, tmp_path):
    said = refused(*start(table), "--method.rank", 99, says="--method.rank (4 places, the first bert.encoder.layer.0.")
    assert said.count("rank out of range") == 1
    refused(*start(table), "--method.targets", "nope", says="--method.targets: 'nope' matches none of the model's")
    run = write(tmp_path / "run.toml", '[method]\ntype = "lora"\ntargets = ["query", "nope"]\n')
    refused("train", run, *start(table)[1:], says="run.toml:3:method.targets: 'nope' matches none")


BROKEN = {
    "empty.csv": ("", "empty.csv: the file is empty"),
    "header.csv": ("text,label\n", "header and no rows"),
    "open.csv": ('text,label\n"good,yes\n', "open.csv:2: a quoted field is never closed"),
    "wide.csv": ("text,label\ngood,yes\nbad,no,more\n", "wide.csv:3: ragged row; expected 2 fields"),
    "cut.jsonl": ('{"text": "a", "label": "x"}\n{"text": "b', "cut.jsonl:2"),
    "cut.json": ('[{"text": "a", "label": "x"}, {"te', "cut.json:1"),
    "cut.parquet": (b"PAR1 not really", "broken parquet"),
    "binary.csv": (b"text,label\n\x00\x01\x02\x03,x\n", "binary.csv"),
    "other.xlsx": (b"PK", "unknown kind of file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_train_eval_and_predict(refused, start, adapter, tmp_path, name):
    content, says = BROKEN[name]
    file = write(tmp_path / name, content)
    refused(*start(file), says=says)
    assert not (tmp_path / "o").exists()
    refused("eval", "--adapter", adapter, "--data", file, says=says)
    refused("predict", "--adapter", adapter, "--data", file, "--output", tmp_path / "a.csv", says=says)
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(("bom", "encoding"), [(b"\xef\xbb\xbf", "utf-8"), (b"", "latin-1"), (b"", "utf-8")])
def test_bom_crlf_and_latin_1_are_read_and_answered(fw, adapter, tmp_path, bom, encoding):
    rows = "text,number\r\ncaf\xe9 good staff,1\r\nbad staff,2\r\n".encode(encoding)
    file = write(tmp_path / "d.csv", bom + rows)
    found = fw("predict", "--adapter", adapter, "--data", file, "--json").json["rows"]
    assert [row["label"] for row in found] == ["yes", "no"]
    assert found[0]["text"] == "caf\xe9 good staff"


def test_one_class_is_told_and_one_row_each_is_enough(fw, refused, start, tmp_path):
    one = write(tmp_path / "one.csv", "text,label\ngood,yes\n")
    refused(*start(one), says="fewer than two labels")
    two = write(tmp_path / "two.csv", "text,label\ngood,yes\nbad,no\n")
    assert fw(*start(two)).code == 0


def test_one_row_of_text_trains_a_decoder(fw, start, llama, tmp_path):
    one = write(tmp_path / "one.jsonl", json.dumps({"prompt": "good", "completion": "food"}) + "\n")
    done = fw(*start(one, llama), "--method.targets", "linear", "--json")
    assert done.code == 0, done.err
    assert done.json["steps"] == 1


def test_prompts_without_answers_say_where_answers_were_looked_for(refused, start, llama, tmp_path):
    rows = [{"instruction": "say food", "instances": [{"output": "food"}]}] * 2
    file = write(tmp_path / "d.jsonl", "\n".join(map(json.dumps, rows)))
    says = [
        "no answers to train on; expected a column 'output'; got columns instruction, instances",
        "--columns output=",
    ]
    refused(*start(file, llama), says=says)


def test_a_label_unseen_in_training(refused, start, adapter, tmp_path):
    file = write(tmp_path / "new.csv", "text,label\ngood,perhaps\nbad,no\nnice,maybe\n")
    refused("eval", "--adapter", adapter, "--data", file, says=["new.csv:2", "perhaps", "new.csv:4", "maybe"])
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.csv", "text,label\ngood,yes\nbad,no\n")
    write(folder / "valid.csv", "text,label\ngood,never\n")
    refused(*start(folder), says=["valid.csv:2", "never"])


def test_an_unlabelled_valid_split_is_not_scored(fw, start, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.csv", "text,label\ngood,yes\nbad,no\n")
    write(folder / "valid.csv", "text\ngood\n")
    done = fw(*start(folder), "--json")
    assert done.code == 0, done.err
    assert done.json["scores"] == {}


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_text_longer_than_the_model_is_cut(fw, start, adapter, tmp_path, command):
    file = write(tmp_path / "long.csv", f"text,label\n{'good ' * 500},yes\nbad,no\n")
    argv = start(file) if command == "train" else [command, "--adapter", adapter, "--data", file]
    done = fw(*argv, "--json")
    assert done.code == 0, done.err
    if command == "train":
        assert "1 of 2 rows are longer than 64 tokens and are cut" in done.err


def test_a_length_beyond_the_model(refused, start, table):
    refused(*start(table), "--length", 999, says=["--length: no such length", "1 to 64", "999"])


def test_a_tokenizer_of_another_model(refused, start, bert, table, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(bert, folder)
    form = json.loads((folder / "tokenizer.json").read_text())
    form["model"]["vocab"] |= {f"word{i}": 23 + i for i in range(9)}
    (folder / "tokenizer.json").write_text(json.dumps(form))
    refused(*start(table, folder), says=["different vocabularies", "23", "32"])


def test_no_pad_token_is_no_obstacle(fw, start, llama, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**model, "pad_token_id": None}))
    rows = [{"prompt": "good", "completion": "food " * n} for n in (1, 4)]
    file = write(tmp_path / "d.jsonl", "\n".join(map(json.dumps, rows)))
    done = fw(*start(file, folder), "--method.targets", "linear")
    assert done.code == 0, done.err
    labelled = write(tmp_path / "d.csv", "text,label\ngood,yes\nbad food area,no\n")
    assert fw(*start(labelled, folder, output="c"), "--method.targets", "linear").code == 0


def test_an_adapter_on_another_base_is_named(refused, bert, adapter, table, tmp_path):
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(bert)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight += 0.1
    model.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, tmp_path / "other")
    for argv in (["eval", "--data", table], ["predict", "good"], ["merge", "--output", tmp_path / "m"]):
        refused(*argv, "--adapter", adapter, "--model", tmp_path / "other", says="base")
    refused("train", "--from", adapter, "--model", tmp_path / "other", "--data", table, "--output", tmp_path / "o",
            says="base")  # fmt: skip
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("damage", ["short", "noise", "absent"])
def test_damaged_weights_of_adapter_and_base(refused, start, bert, adapter, table, tmp_path, damage):
    for name, source, file in (("a", adapter, "adapter_model.safetensors"), ("b", bert, "model.safetensors")):
        folder = tmp_path / name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints"))
        data = (folder / file).read_bytes()
        (folder / file).unlink()
        if damage != "absent":
            (folder / file).write_bytes(data[: len(data) // 2] if damage == "short" else b"\xff" * 64 + data[64:])
    refused("eval", "--adapter", tmp_path / "a", "--data", table, says="adapter_model.safetensors")
    refused(*start(table, tmp_path / "b"), says=str(tmp_path / "b"))
    assert not (tmp_path / "o").exists()


def test_rank_precision_and_packing_that_cannot_be(refused, start, table):
    refused(*start(table), "--method.rank", 999, says=["rank", "999"])
    refused(*start(table), "--precision", "fp16", "--device", "cpu", says="--precision: there is no fp16")
    refused(*start(table), "--packing", says="packing is for causal language models")


def test_packing_on_a_model_whose_rows_would_see_each_other(refused, start, words, tmp_path):
    import transformers as t

    config = t.BloomConfig(vocab_size=23, hidden_size=32, n_layer=1, n_head=2, pad_token_id=0)
    t.BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    words.save_pretrained(tmp_path / "bloom")
    file = write(tmp_path / "d.jsonl", '{"prompt": "good", "completion": "food"}\n' * 4)
    says = ["--packing: the model cannot be trained on packed rows", "leave it out"]
    refused(*start(file, tmp_path / "bloom"), "--packing", says=says)


def test_targets_that_match_nothing(refused, start, table):
    refused(*start(table), "--method.targets", "qurey", says=["qurey", "query"])


def test_an_output_that_is_a_file_or_holds_something_else(refused, start, table, tmp_path):
    out = write(tmp_path / "o", "mine")
    refused(*start(table), says="the output is a file")
    assert out.read_text() == "mine"
    out.unlink()
    out.mkdir()
    write(out / "thesis.txt", "mine")
    refused(*start(table), says="not empty")
    refused(*start(table), "--resume", says="holds no run to resume")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_folder_that_may_not_be_written(refused, start, table, monkeypatch, tmp_path):
    import errno
    import os

    real = os.open

    def refuse(path, *given, **more):
        if str(path).startswith(str(tmp_path / "o")):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *given, **more)

    monkeypatch.setattr(os, "open", refuse)
    refused(*start(table), says="the output folder cannot be written (Permission denied)")


def test_a_disk_that_fills_up_costs_one_step(fw, start, table, monkeypatch, tmp_path):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    argv = [*start(table, steps=4), "--checkpoint-every", 1]
    free = iter([10**12, 10**12, 0])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, next(free)))
        full = fw(*argv)
    assert full.code == 1
    assert "step-3: not written, the disk is full" in full.err
    assert sorted(p.name for p in (tmp_path / "o/checkpoints").iterdir()) == ["step-1", "step-2"]
    on = fw("train", tmp_path / "o/run.toml", "--resume")
    assert on.code == 0, on.err
    assert "going on after step 2" in on.err
