"""`fw fewshot`: the table, the JSON, and what goes on from where it was."""

import json

import pytest

from featherweight.cli.main import main
from featherweight.train import run as verb


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setattr(verb, "curve", lambda *_: [])
    monkeypatch.setenv("COLUMNS", "140")

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def test_the_table_of_fewglue(run, t5, fewglue, tmp_path):
    words = ["fewshot", "fewglue", t5, fewglue, "--steps", 2, "--seeds", "0,1", "--output", tmp_path / "out"]
    code, out, err = run(*words)
    assert code == 0, err
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert rows["rte"][1:3] == ["8", "12"]
    assert rows["copa"][1:3] == ["8", "6"]
    assert "(" in " ".join(rows["rte"])  # quartiles of two seeds
    assert rows["mean"][1].endswith("%")
    assert "copa, seed 1: 8 rows to train on, 6 to answer" in err
    code, out, _ = run(*words, "--resume", "--json")
    found = json.loads(out)
    assert found == {"command": "fewshot", "exit": 0, "suite": "fewglue",
                     **json.loads((tmp_path / "out" / "results.json").read_text())}  # fmt: skip
    code, _, err = run(*words)
    assert (code, "the output folder is not empty" in err) == (2, True)


def test_another_method_without_a_recipe_and_a_submission(run, t5, raft, tmp_path):
    method = ["--recipe", "none", "--method", "lora", "--method.rank", 2, "--steps", 2, "--lr", "1e-3"]
    words = ["fewshot", "raft", t5, raft, "--folds", 0, "--submit", "test_unlabeled.csv", "--output", tmp_path / "out"]
    code, out, err = run(*words, *method)
    assert code == 0, err
    assert "predictions.csv" in out
    assert "accuracy" not in out  # nothing was scored
    assert "recipe" not in err
    assert "published" not in out
    config = json.loads(
        (tmp_path / "out" / "twitter_complaints" / "seed-0" / "all" / "adapter_config.json").read_text()
    )
    assert (config["peft_type"], config["r"]) == ("LORA", 2)


def test_rafts_published_figures_stand_under_the_table(run, t5, raft, tmp_path):
    code, out, err = run("fewshot", "raft", t5, raft, "--folds", 2, "--steps", 1, "--output", tmp_path / "out")
    assert code == 0, err
    assert "T-Few 75.8, human 73.5, PET 69.6, SetFit 66.9, GPT-3 62.7" in out
    assert "twitter_complaints" in out


def test_t_fews_draws(run, t5, draws, tmp_path):
    words = ["fewshot", "tfew", t5, draws, "--tasks", "rte", "--rows", 3, "--steps", 1, "--output", tmp_path / "out"]
    code, out, err = run(*words, "--seeds", "42", "--json")
    assert code == 0, err
    assert json.loads(out)["tasks"]["rte"]["test"] == 3
