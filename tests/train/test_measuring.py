"""What a method reads before step 1 is told, and what several runs have in common is told once."""

import pytest

import featherweight as fw
from featherweight.train.log import once, suite
from featherweight.train.measuring import Measured


@pytest.mark.parametrize(("method", "rows"), [(fw.FishMask(samples=8), 8), (fw.LoRA(rank=2, init="eva"), 48)])
def test_measuring_is_told_before_step_1(make, tokenizer, lm_rows, capsys, method, rows):
    fw.train(make("llama"), lm_rows, method=method, tokenizer=tokenizer, steps=1, batch=8, seed=3)
    told = capsys.readouterr().err
    name = type(method).__name__.lower()
    before, _, after = told.partition(f"{name}: measured on {rows} rows in ")
    assert f"{name}: measuring on the training rows, before step 1 …" in before
    assert "step 1/1" not in before
    assert "step 1/1" in after


def test_loftq_says_what_it_is_at(tiny_folder, capsys):
    rows = f"{tiny_folder}/rows.jsonl"
    method = fw.LoRA(rank=2, init="loftq")
    fw.train(str(tiny_folder), rows, fw.CausalLM(), method=method, quantize=fw.NF4(block=16), steps=1)
    assert "loftq: starting 4 layers from what quantizing lost …" in capsys.readouterr().err


def test_a_method_that_reads_nothing_is_silent(make, tokenizer, lm_rows, capsys):
    fw.train(make("llama"), lm_rows, method=fw.LoRA(), tokenizer=tokenizer, steps=1)
    assert "measur" not in capsys.readouterr().err


def test_long_measuring_says_how_far_it_is():
    said = []
    batches = Measured("m", lambda: [{"x": [0, 0]}, {"x": [0]}], None, said.append, every=0)
    assert len(list(batches)) == 2
    batches.done()
    assert said[:3] == ["m: measuring on the training rows, before step 1 …", "m: 0 rows so far, 0 s",
                        "m: 2 rows so far, 0 s"]  # fmt: skip
    assert said[3].startswith("m: measured on 3 rows in ")


def test_once_in_a_suite_and_as_often_as_asked_outside_of_one():
    said = []
    for _ in range(2):
        once(said.append)("alone")
    with suite():
        for text in ("a", "b", "a"):
            once(said.append)(text)
    once(said.append)("a")
    assert said == ["alone", "alone", "a", "b", "a"]


def test_seeds_say_their_recipe_and_notes_once(tiny_folder, tmp_path, capsys):
    rows = [{"prompt": "name food", "choices": ["good", "bad"], "answer": 0, "extra": 1}] * 4
    fw.repeat(str(tiny_folder), rows, seeds=(0, 1, 2), output=tmp_path, recipe="tfew", steps=1)
    told = capsys.readouterr().err
    assert told.count("recipe tfew (") == 1
    assert told.count("columns that are not used") == 1
    assert told.count("step 1/1") == 3
