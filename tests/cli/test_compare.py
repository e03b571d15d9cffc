"""`fw compare`: one command, one table, one object."""

import json


def test_a_base_and_an_adapter_on_the_same_rows(fw, llama, bert, adapter, table, tmp_path):
    rows = tmp_path / "new.csv"
    rows.write_text("text,label\nname good food,yes\nbad area,no\ncheap bad pub,no\n", encoding="utf-8")
    got = fw("compare", llama, table, rows, "--adapter", adapter, "--shots", "0,2", "--embedder", bert, "--words",
             "yes=good,no=bad", "--json")  # fmt: skip
    assert got.code == 0, got.err
    names = [line["name"] for line in got.json["lines"]]
    assert names == ["most frequent", "zero-shot", "2-shot, random", "2-shot, nearest", "frozen + regression",
                     f"tuned: {adapter.name}"]  # fmt: skip
    assert got.json["rows"] == 3
    for line in got.json["lines"]:
        low, high = line["interval"]
        assert 0 <= low <= line["score"] <= high <= 1
        assert line["query_flops"] > 0 or line["name"] == "most frequent"
    assert "published" not in got.json
    again = fw("eval", "--adapter", adapter, "--data", rows, "--json").json["accuracy"]
    assert got.json["lines"][-1]["score"] == again


def test_what_a_person_sees(fw, bert, table):
    got = fw("compare", bert, table, table, "--rows", 20, "--published")
    assert got.code == 0, got.err
    assert "frozen + regression" in got.out
    assert "most frequent" in got.out
    assert "these rows do not say whether tuning helps" in got.out
    assert "Published, not on these rows" in got.out
    assert "SetFit" in got.out
    assert "66.9%" in got.out


def test_rows_that_the_adapter_was_trained_on(fw, bert, adapter, table):
    got = fw("compare", bert, table, table, "--adapter", adapter)
    assert got.code == 2
    assert "the adapter was trained on these very rows" in got.err


def test_every_wrong_word_at_once(fw, llama, table):
    got = fw("compare", llama, table, table, "--shots", "0,x", "--words", "good", "--json")
    assert got.code == 2
    said = json.dumps(got.json["problems"])
    assert "not a number of shots" in said
    assert "not a mapping" in said
    assert fw("compare", llama, table, table, "--select", "nearest").code == 2
    assert fw("compare", llama).code == 2
