"""Recipes, seeds, templates and suites on the command line: what is read, what is printed, what is refused."""

import json
import tomllib
from pathlib import Path

import pytest

from featherweight.cli.config import read_config
from featherweight.core.errors import InputError
from featherweight.train import run as verb

WORDS = ("good", "bad", "warm", "cold")


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(verb, "curve", lambda *_: [])


@pytest.fixture
def tweets(tmp_path):
    """A task of RAFT's in words that the tiny model knows, with templates for it."""
    home = tmp_path / "raft" / "twitter_complaints"
    home.mkdir(parents=True)
    rows = [f"the pub is {WORDS[i % 4]} {i},{'complaint' if i % 2 else 'no complaint'},{i}" for i in range(8)]
    (home / "train.csv").write_text("Tweet text,Label,ID\n" + "\n".join(rows) + "\n")
    (home / "new.csv").write_text("Tweet text,ID\nthe staff is slow,50\n")
    classes = {"label_columns": {"Label": ["complaint", "no complaint"]}}
    (home / "task.json").write_text(json.dumps(classes))
    return home.parent


@pytest.fixture
def own(tmp_path):
    """Prompt templates of one's own, whose answers are words of the tiny model."""
    folder = tmp_path / "mood"
    folder.mkdir()
    (folder / "is.jinja").write_text('{% set choices = ["bad", "good"] %}\n{{ tweet_text }} is')
    (folder / "name.jinja").write_text('{% set choices = ["slow", "fast"] %}\n{{ tweet_text }}')
    (folder / "labels.json").write_text('{"complaint": 0, "no complaint": 1}')
    return folder


def test_flags_go_over_the_file_and_the_file_over_the_recipe(tmp_path):
    (tmp_path / "run.toml").write_text('model = "m"\ndata = "d"\nrecipe = "tfew"\nlr = 1e-2\nbatch = 4\n')
    config = read_config([str(tmp_path / "run.toml"), "--batch", "2"])
    assert (config.recipe, config.settings["lr"], config.settings["batch"]) == ("tfew", 1e-2, 2)
    assert (config.settings["optimizer"], config.settings["steps"]) == ("adafactor", 1000)
    assert repr(config.method) == "IA3()"
    assert config.origins["optimizer"] == "recipe tfew"
    longer = read_config([str(tmp_path / "run.toml"), "--epochs", "2"])
    assert longer.settings["epochs"] == 2
    assert "steps" not in longer.settings


def test_options_without_a_name_are_those_of_the_recipes_nouns(llama):
    given = ["--model", str(llama), "--data", "d", "--recipe", "tfew"]
    config = read_config([*given, "--method.targets", "value", "--task.unlikelihood", "0"])
    assert repr(config.method) == "IA3(targets='value')"
    assert repr(config.task) == "Choices(unlikelihood=0.0)"
    assert repr(read_config([*given, "--method", "lora", "--method.rank", "2"]).method) == "LoRA(rank=2)"
    assert read_config(["--from", "a", "--data", "d", "--recipe", "tfew"]).method is None


def test_what_is_wrong_with_them_is_said_where_it_stands(tmp_path):
    with pytest.raises(InputError) as error:
        read_config(["--model", "m", "--data", "d", "--recipe", "tfw", "--seeds", "1,-2", "--seed", "3", "--lr", "x"])
    said = [str(p) for p in error.value.problems]
    assert "--recipe: unknown recipe; got 'tfw'; did you mean 'tfew'?" in said
    assert "--seeds: wrong value; expected whole numbers from 0; got (1, -2)" in said
    assert "--seed: a seed beside the seeds; leave one of them out" in said
    assert any(p.startswith("--lr: wrong value") for p in said)
    assert read_config(["--model", "m", "--data", "d", "--seeds", "3,3,1"]).seeds == (3, 1)
    assert read_config(["--model", "m", "--data", "d", "--seeds", "3"]).seeds == (3,)


def test_train_eval_predict_in_the_same_words(fw, llama, tweets, own, tmp_path):
    """What an adapter was trained with is what it is asked with."""
    file, out = tweets / "twitter_complaints" / "train.csv", tmp_path / "out"
    given = ["--model", llama, "--data", file, "--recipe", "tfew", "--steps", 3]
    trained = fw("train", *given, "--template", own, "--output", out)
    assert trained.code == 0, trained.err
    assert "recipe tfew" in trained.err
    assert "prompt templates of" in trained.err
    assert tomllib.loads((out / "run.toml").read_text())["template"] == str(own)
    scored = fw("eval", "--adapter", out, "--data", file, "--json").json
    assert (scored["rows"], scored["template"]) == (8, str(own))
    assert {"accuracy", "median", "accuracy/is", "accuracy/name"} <= scored.keys()
    one = fw("eval", "--adapter", out, "--data", file, "--template", f"{own}/is", "--json").json
    assert one["accuracy"] == scored["accuracy/is"] == one["median"]
    new = tweets / "twitter_complaints" / "new.csv"
    answer = fw("predict", "--adapter", out, "--data", new, "--json").json["rows"][0]
    assert answer["label"] in ("complaint", "no complaint")
    assert answer["probability"] == max(answer["probabilities"])
    shown = fw("predict", "--adapter", out, "--data", new)
    assert "the staff is slow" in shown.out
    refused = fw("eval", "--adapter", out, "--data", file, "--columns", "text=Tweet text")
    assert refused.code == 2
    assert "columns.text: the templates have no such field; choose from tweet_text, label" in refused.err
    assert fw("predict", "--adapter", out, "so good").code == 2


def test_columns_of_the_file_stand_for_fields_of_the_templates(fw, llama, tweets, own, tmp_path):
    """Every command that words rows: train, plan, eval, predict, data, templates."""
    there = tweets / "twitter_complaints" / "train.csv"
    file = tmp_path / "renamed.csv"
    file.write_text(there.read_text().replace("Tweet text", "Body").replace("Label", "Kind"))
    columns = ["--columns", "tweet_text=Body,label=Kind"]
    out = tmp_path / "out"
    words = ["--data", file, "--template", own, *columns]
    done = fw("train", "--model", llama, *words, "--recipe", "tfew", "--steps", 1, "--output", out)
    assert done.code == 0, done.err
    assert fw("plan", llama, *words, "--recipe", "tfew").code == 0
    scored = fw("eval", "--adapter", out, "--data", file, *columns, "--json").json
    assert scored["template"] == str(own)
    shown = fw("predict", "--adapter", out, "--data", file, "--columns", "tweet_text=Body")
    assert "the pub is cold 7 " in shown.out
    assert "is\n    bad" in fw("templates", own, "--data", file, *columns).out
    assert "- bad" in fw("data", file, "--template", f"{own}/is", *columns).out
    assert "did you mean 'Body'?" in fw("data", file, "--template", own, "--columns", "tweet_text=body").err


def test_seeds_print_their_median(fw, llama, tweets, own, tmp_path):
    out, file = tmp_path / "out", tweets / "twitter_complaints" / "train.csv"
    words = ["train", "--model", llama, "--data", file, "--template", own, "--recipe", "tfew", "--steps", 2, "--seeds",
             "0,5", "--output", out]  # fmt: skip
    first = fw(*words)
    assert first.code == 0, first.err
    assert "seed 5, 2 of 2" in first.err
    for word in ("median", "middle half", "inter-quartile range", f"{out}/seeds.json"):
        assert word in first.out.replace("\n", "")
    again = fw(*words, "--resume", "--json").json
    assert again["scores"].keys() == {"0", "5"}
    assert fw(*words).code == 2


def test_templates_are_listed_shown_and_tried(fw, tweets, own):
    listed = fw("templates", "--json").json["sets"]
    assert len(listed) >= 21
    assert listed["rte"]["fields"] == ["hypothesis", "premise"]
    assert "guarantee" in fw("templates").out
    assert "maybe" in fw("templates", "cb").out
    tried = fw("templates", own, "--data", tweets / "twitter_complaints" / "train.csv")
    assert "the pub is good 0 is\n    bad\n  ▶ good" in tried.out
    assert fw("templates", "cbb").err.strip().endswith("did you mean 'cb'?")
    assert fw("templates", "--data", "x").code == 2
    shown = fw("data", tweets / "twitter_complaints" / "train.csv", "--template", f"{own}/is")
    assert "- bad\n- ⟦good⟧" in shown.out


def test_a_tokenizer_that_merges_the_answers_is_refused(fw, llama, tweets, tmp_path):
    out = tmp_path / "out"
    words = ["fewshot", "raft", llama, tweets, "--folds", 2, "--steps", 1, "--output", out, "--length", 40]
    refused = fw(*words)
    assert refused.code == 2  # the tiny model has one token for yes and for no
    assert "choices that the model cannot tell apart" in refused.err


def test_a_recipe_is_planned(fw, llama):
    found = fw("plan", llama, "--recipe", "tfew", "--length", 16, "--json").json
    assert (found["method"], found["batch"]) == ({"type": "ia3"}, 8)


def test_rows_worded_by_a_template_are_planned(fw, llama, tmp_path):
    rows, folder = tmp_path / "x.jsonl", Path(__file__).parents[2] / "models" / "tiny-t5"
    rows.write_text('{"premise": "it rained all day", "hypothesis": "it was wet", "label": "entailment"}\n')
    words = ["--recipe", "tfew", "--template", "rte", "--length", 64]
    found = fw("plan", folder, *words, "--data", rows, "--json").json
    assert (found["method"], found["batch"]) == ({"type": "ia3"}, 8)
    refused = fw("plan", llama, *words, "--data", rows)  # as training does: one token for yes and for no
    assert refused.code == 2
    assert "choices that the model cannot tell apart" in refused.err


def test_help_and_wrong_words(fw):
    shown = fw("fewshot")
    for word in ("SUITE MODEL DIR", "fewglue", "raft", "tfew", "--submit", "--rows", "--folds", "--tasks"):
        assert word in shown.out
    assert "fewshot" in fw("--help").out
    wrong = fw("fewshot", "rafft", "m", "--data", "x", "--stpes", 3)
    assert wrong.code == 2
    assert "SUITE: unknown suite; got 'rafft'; did you mean 'raft'?" in wrong.err
    assert "DIR: is needed" in wrong.err
    assert "--data: not for a suite" in wrong.err
    assert "--stpes: unknown key; did you mean '--steps'?" in wrong.err
    assert "--recipe" in fw("train").out
    assert "--seeds" in fw("train").out
