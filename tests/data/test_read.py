import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.data.jsons import read_json, read_jsonl
from featherweight.data.load import load
from featherweight.data.read import read
from featherweight.data.rows import examples
from featherweight.data.shape import shape_of
from featherweight.data.table import read_table

COUNTS = {
    "mrpc/train.tsv": 3667, "mrpc/dev.tsv": 408, "mrpc/msr_paraphrase_test.txt": 1725, "stsb/train.tsv": 5749,
    "stsb/dev.tsv": 1500, "sst2/dev.tsv": 872, "rte/train.tsv": 2490, "cola/dev.tsv": 1043, "cola/train.tsv": 8551,
    "banking77/train.csv": 10003, "banking77/test.csv": 3080, "e2e_nlg/devset.csv": 4672, "gsm8k/test.jsonl": 1319,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_real_files_have_all_their_rows(data_dir, name):
    assert len(read(data_dir / name)) == COUNTS[name]


def test_lines_of_quoted_newlines_crlf_and_bom(write):
    path = write("a.csv", b'\xef\xbb\xbftext,label\r\n"one\r\ntwo",x\r\n\r\n"three ""3""",y\r\n')
    rows = read(path)
    assert [r.fields for r in rows] == [{"text": "one\r\ntwo", "label": "x"}, {"text": 'three "3"', "label": "y"}]
    assert [r.where for r in rows] == [f"{path}:2", f"{path}:5"]


def test_latin_1_is_read_with_a_note(write):
    rows = read(write("a.csv", "text,label\ncafé,x\n".encode("latin-1")))
    assert rows[0].fields["text"] == "café"
    assert "a.csv:2: byte 0xe9 is not UTF-8" in rows.notes[0]


def test_utf_16(write):
    assert read(write("a.tsv", "text\tlabel\né\tx\n".encode("utf-16")))[0].fields["text"] == "é"


def test_fields_longer_than_the_csv_modules_limit(write):
    before = csv.field_size_limit()
    assert len(read(write("a.csv", "text,label\n" + "a" * 200_000 + ",x\n"))[0].fields["text"]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(("content", "names"), [
    ("a fine film,1\na bad film,0\n", ["text", "label"]), ("1,a fine film\n0,a bad film\n", ["label", "text"]),
    ("good stuff,positive\nbad stuff,negative\n", ["text", "label"]),
    ("first text here,red\nsecond text,blue\nthird,red\n", ["text", "label"]),
    ("a fine film,1\n", ["text", "label"])])  # fmt: skip
def test_headerless(write, content, names):
    rows = read(write("a.csv", content))
    assert len(rows) == content.count("\n")
    assert list(rows[0].fields) == names
    assert "no header row" in rows.notes[0]


@pytest.mark.parametrize("content", ["review,stars\na,5\n", "Text,Label\na,b\n", "note,kind\nx,1\ny,2\n"])
def test_headers_are_seen(write, content):
    assert list(read(write("a.csv", content))[0].fields) == content.split("\n")[0].split(",")


def test_quotes_in_tsv(write):
    literal = read(write("a.tsv", 'text\tlabel\n"Hi" he said\t1\nsay "no\t0\n"whole"\t1\n'))
    assert [r.fields["text"] for r in literal] == ['"Hi" he said', 'say "no', '"whole"']
    quoted = read(write("b.tsv", 'text\tlabel\n"a ""b""\tc\nd"\t1\n'))
    assert quoted[0].fields["text"] == 'a "b"\tc\nd'


def test_semicolons(write):
    assert read(write("a.csv", "text;label\na, b;x\n"))[0].fields == {"text": "a, b", "label": "x"}


def test_plain_text(write):
    lines = write("a.txt", "one\ntwo\n")
    assert [(r.fields["text"], r.where) for r in read(lines)] == [("one", f"{lines}:1"), ("two", f"{lines}:2")]
    path = write("b.txt", "one\ntwo\n\n\nthree\n")
    assert [(r.fields["text"], r.where) for r in read(path)] == [("one\ntwo", f"{path}:1"), ("three", f"{path}:5")]


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert [(r.fields, r.where[-2:]) for r in rows] == [  # the record's number
        ({"text": "a", "label": 0}, ":1"),
        ({"text": "b", "label": 1}, ":2"),
    ]


cells = st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters='\n",\t'), max_size=12)


@given(st.lists(st.tuples(cells, cells.filter(str.strip)), min_size=1, max_size=8))
def test_csv_round_trip(tmp_path_factory, records):
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *records])
    rows = read_table(tmp_path_factory.getbasetemp() / "a.csv", out.getvalue(), {})
    assert [(r.fields["text"], r.fields["label"]) for r in rows] == records


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9), min_size=1), min_size=1, max_size=6))
def test_json_round_trips_and_lines(tmp_path_factory, records):
    path = tmp_path_factory.getbasetemp() / "a.json"
    rows = read_jsonl(path, "\n\n".join(map(json.dumps, records)))
    assert [(r.fields, r.where) for r in rows] == [(r, f"{path}:{2 * i + 1}") for i, r in enumerate(records)]
    rows = read_json(path, "[\n" + ",\n".join(map(json.dumps, records)) + "\n]")
    assert [(r.fields, r.where) for r in rows] == [(r, f"{path}:{i + 2}") for i, r in enumerate(records)]


def test_folder_mixture_and_memory(write, tmp_path):
    one = write("train.csv", "text,label\na,x\nb,y\n")
    two = write("validation.jsonl", '{"text": "c", "label": "x"}\n')
    data = load(tmp_path)
    assert (len(data.train), len(data.valid), data.test, data.shape.name) == (2, 1, (), "classification")
    mixed = load(f"{one}:0.7,{two}:0.3")
    assert mixed.weights == (0.7, 0.3)
    assert [r.source for r in mixed.train] == [0, 0, 1]
    assert load({str(one): 2, str(two): 1}).weights == (2.0, 1.0)
    assert load([str(one), str(two)]).weights is None
    assert load([{"text": "a"}]).train[0].where == "data:1"


SHAPES = [
    ({"text": "a", "label": 1}, "classification", "1"), ({"review": "a", "stars": 4}, "classification", "4"),
    ({"sentence1": "a", "sentence2": "b", "label": True}, "pair", "true"),
    ({"text": "a", "score": "3"}, "regression", 3.0), ({"text": "a", "label": 0.5}, "regression", 0.5),
    ({"text": "a", "labels": ["x", "y"]}, "multilabel", ("x", "y")),
    ({"text": "a", "label": 1234567}, "classification", "1234567"),
    ({"text": "a", "label": 2.0}, "classification", "2"),
    ({"text": "a", "label": ["x"]}, "multilabel", ("x",)),
    ({"prompt": "a", "completion": "b"}, "completion", None), ({"question": "a", "answer": "b"}, "completion", None),
    ({"instruction": "a", "input": "", "output": "b"}, "instruction", None), ({"anything": "a"}, "text", None),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages", None),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "messages", None),
]  # fmt: skip


@pytest.mark.parametrize(("record", "name", "label"), SHAPES)
def test_shapes_are_detected(record, name, label):
    data = load([record])
    assert data.shape.name == name
    assert examples(data.train, data.shape)[0].label == label


def test_instruction_template_and_seam():
    data = load([{"instruction": "Add.", "input": "1 2", "output": "3"}])
    turns = examples(data.train, data.shape)[0].turns
    assert [(t.text, t.trained) for t in turns] == [
        ("Instruction:\nAdd.\n\nInput:\n1 2\n\nOutput:\n", False),
        ("3", True),
    ]
    rows = read([{"prompt": "Q", "completion": "A"}, {"prompt": "Q ", "completion": "A"}])
    assert [e.turns[0].text for e in examples(rows, shape_of(rows))] == ["Q\n", "Q "]


def test_columns_settle_what_names_do_not():
    rows = read([{"title": "a", "abstract": "b", "label": "x"}])
    assert shape_of(rows, "text=abstract").columns == {"text": "abstract", "label": "label"}
    assert shape_of(rows, {"text": "title", "label": "label"}).name == "classification"
