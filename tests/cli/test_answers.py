"""Answers of every kind in files: words with spaces, records in .jsonl alone, columns of the row left as they are."""

import json

from featherweight.cli.answers import answered, write
from featherweight.cli.predict_command import spoken

ROW = {"tokens": ["Anna", ",", "Oslo"], "tags": ["B-PER", "O", "B-LOC"]}
ENTITIES = [{"type": "PER", "text": "Anna", "start": 0, "end": 1}]


def test_tags_beside_those_of_the_row(tmp_path):
    row = answered(ROW, {"tags": ["B-PER", "O", "O"], "entities": ENTITIES})
    assert row == {**ROW, "predicted_tags": ["B-PER", "O", "O"], "entities": ENTITIES}
    write(tmp_path / "a.csv", [row])
    assert (tmp_path / "a.csv").read_text() == 'tokens,tags,predicted_tags\n"Anna , Oslo",B-PER O B-LOC,B-PER O O\n'
    write(tmp_path / "a.jsonl", [row])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == row


def test_a_piece_and_where_it_stands(tmp_path):
    row = answered({"question": "q"}, {"text": "", "probability": 0.5, "start": None, "end": None, "no_answer": 0.5})
    assert list(row) == ["question", "text", "probability", "start", "end", "no_answer"]
    write(tmp_path / "a.csv", [row])
    assert (tmp_path / "a.csv").read_text() == "question,text,probability,start,end,no_answer\nq,,0.5,,,0.5\n"


def test_a_row_on_the_screen():
    assert spoken(ROW["tokens"]) == "Anna , Oslo"
    assert spoken("a text") == "a text"
    assert spoken([{"role": "user"}]) == "[{'role': 'user'}]"
