"""Malformed files: every message names file:line:field, what was expected and what was got."""

import json

import pytest

from featherweight.core.errors import InputError
from featherweight.data.load import load


def chats(*turns):
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]})


U, A = ("user", "Hi"), ("assistant", "Hello")
BAD = {
    "empty.csv": (b"", ["empty.csv", "the file is empty"]),
    "blank.jsonl": (b"\n \n", ["blank.jsonl", "the file is empty"]),
    "bom.csv": (b"\xef\xbb\xbf", ["bom.csv", "the file is empty"]),
    "header.csv": ("text,label\n", ["header.csv", "a header and no rows"]),
    "ragged.csv": ("text,label\na b,x\nc\nd,x,y\n",
                   ["ragged.csv:3", "ragged.csv:4", "expected 2 fields", "got 1", "got 3"]),
    "ragged.tsv": ("text\tlabel\na\tx\nb\n", ["ragged.tsv:3", "got 1"]),
    "open.csv": ('text,label\na,x\n"b,x\nc,y\n', ["open.csv:3", "never closed"]),
    "quote.csv": ('text,label\n"a"b,x\nc,x\n', ["quote.csv:2", "broken quoting"]),
    "after.csv": ('text,label\n"a\nb",x\nc\n', ["after.csv:4", "got 1"]),
    "nolabel.csv": ("text,label\na,x\nb,\nc,y\n", ["nolabel.csv:3:label", "missing label", "got ''"]),
    "notext.csv": ("text,label\n,x\nb,y\n", ["notext.csv:2:text", "empty text"]),
    "both.csv": ("text,label\n ,x\nb,\n", ["both.csv:2:text", "both.csv:3:label"]),
    "pair.csv": ("premise,hypothesis,label\na,,x\n", ["pair.csv:2:hypothesis", "empty text"]),
    "unknown.csv": ("foo,bar,baz\na,b,c\n", ["unknown.csv", "foo, bar, baz", "--columns"]),
    "two.csv": ("title,abstract,label\na,b,c\n", ["two.csv", "more than one way", "text=title", "text=abstract"]),
    "texts.csv": ("content,review,label\na,b,c\n", ["more than one way", "text=content", "text=review"]),
    "score.csv": ("text,score\na,1.5\nb,high\nc,nan\n",
                  ["score.csv:3:score", "not a number", "'high'", "score.csv:4:score"]),
    "noscore.csv": ("text,score\na,1.5\nb,\n", ["noscore.csv:3:score", "missing score"]),
    "nul.csv": (b"text,label\na\0b,x\n", ["nul.csv:2", "NUL byte"]),
    "utf8.csv": ("text,label\né,x\né,x\n".encode() + b"\xe9,x\n", ["utf8.csv:4", "broken UTF-8", "byte 0xe9"]),
    "trunc.jsonl": ('{"text": "a", "label": "x"}\n{"text": "b", "la', ["trunc.jsonl:2", "broken JSON", "ends early"]),
    "lines.jsonl": ('{"text": "a"}\n[1]\n3\n{"text"}\n',
                    ["lines.jsonl:2", "lines.jsonl:3", "lines.jsonl:4", "got list", "got int"]),
    "typo.jsonl": ('{"text": "a", "label": "x"}\n{"text": "b", "lable": "x"}', ["typo.jsonl:2:label", "got nothing"]),
    "type.jsonl": ('{"text": 3, "label": "x"}\n{"text": "b", "label": {"a": 1}}',
                   ["type.jsonl:1:text", "got 3", "type.jsonl:2:label"]),
    "nan.jsonl": ('{"text": "a", "label": "x"}\n{"text": "b", "label": NaN}', ["nan.jsonl:2:label", "got nan"]),
    "fields.jsonl": ("{}\n{}", ["fields.jsonl", "say nothing we know", "columns nothing"]),
    "null.jsonl": ('{"text": null, "label": "x"}', ["null.jsonl:1:text", "got None"]),
    "deep.jsonl": ("[" * 100_000, ["deep.jsonl:1"]),
    "sets.jsonl": ('{"text": "a", "labels": ["x"]}\n{"text": "b", "labels": [{}]}',
                   ["sets.jsonl:2:labels", "list of texts"]),
    "onelist.jsonl": ('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n{"text": "c", "label": ["x", "y"]}',
                      ["onelist.jsonl:3:label", "a list among plain labels", "got ['x', 'y']"]),
    "oneplain.jsonl": ('{"text": "a", "label": ["x"]}\n{"text": "b", "label": "y, z"}\n{"text": "c", "label": []}',
                       ["oneplain.jsonl:2:label", "a plain label among lists", "got 'y, z'"]),
    "trunc.json": ('[\n{"text": "a"},\n{"text": ', ["trunc.json:3", "broken JSON"]),
    "end.json": ('[\n{"text": "a"}\n', ["end.json:3", "the end of the file"]),
    "comma.json": ('[{"text": "a"}\n{"text": "b"}]', ["comma.json:2", "','"]),
    "tail.json": ('[{"text": "a"}]\nx', ["tail.json", "text after the array"]),
    "scalar.json": ("3", ["scalar.json:1", "array of objects"]),
    "none.json": ("[]", ["none.json", "no rows"]),
    "items.json": ('[{"text": "a"},\n 5]', ["items.json:2", "got int 5"]),
    "bad.parquet": (b"PAR1 not really", ["bad.parquet", "broken parquet"]),
    "kind.xyz": (b"a", ["kind.xyz", "unknown kind of file", ".parquet"]),
    "empty.jsonl": ('{"prompt": "a", "completion": "b"}\n{"prompt": "", "completion": "c"}\n{"prompt": "d"}',
                    ["empty.jsonl:2:prompt", "empty text", "empty.jsonl:3:completion", "missing field"]),
    "alpaca.jsonl": ('{"instruction": "a", "input": 3, "output": "b"}\n{"instruction": "", "output": "x"}',
                     ["alpaca.jsonl:1:input", "wrong type", "alpaca.jsonl:2:instruction"]),
    "history.jsonl": ('{"instruction": "a", "output": "b", "history": [["x"]]}',
                      ["history.jsonl:1:history", "[instruction, output]"]),
    "role.jsonl": (chats(("usr", "Hi"), A), ["role.jsonl:1:messages[0].role", "did you mean 'user'?"]),
    "alter.jsonl": (chats(U, U, A),
                    ["alter.jsonl:1:messages[1].role", "do not alternate", "expected assistant", "got user"]),
    "first.jsonl": (chats(A, U, A), ["first.jsonl:1:messages", "speaks first"]),
    "system.jsonl": (chats(U, ("system", "x"), A), ["system.jsonl:1:messages[1].role", "system message in the middle"]),
    "content.jsonl": (chats(("user", 3), A), ["content.jsonl:1:messages[0].content", "wrong type", "got 3"]),
    "silent.jsonl": (chats(U, ("assistant", " ")), ["silent.jsonl:1:messages[1].content", "empty text"]),
    "talk.jsonl": ('{"messages": "hello"}', ["talk.jsonl:1:messages", "not a conversation", "'hello'"]),
    "turn.jsonl": ('{"messages": ["hello"]}', ["turn.jsonl:1:messages[0]", "not a message"]),
    "share.jsonl": ('{"conversations": [{"from": "alien", "value": "x"}]}',
                    ["share.jsonl:1:conversations[0].role", "'alien'"]),
    "mixed.jsonl": ('{"text": "a", "label": "x"}\n{"prompt": "a", "completion": "b"}',
                    ["more than one way", "prompt=prompt"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_malformed_file_is_named_with_line_and_field(write, name):
    content, parts = BAD[name]
    with pytest.raises(InputError) as caught:
        load(write(name, content))
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


def test_all_bad_rows_are_reported_at_once(write):
    path = write("many.csv", "text,label\n" + "".join(f"row {i},{'' if i % 2 else 'x'}\n" for i in range(100)))
    with pytest.raises(InputError) as caught:
        load(path)
    assert [p.where for p in caught.value.problems] == [f"{path}:{i + 2}:label" for i in range(1, 100, 2)]


def test_missing_file_names_its_neighbors(write):
    path = write("train.csv", "text,label\na,b\n")
    with pytest.raises(InputError, match=r"no such file; did you mean train\.csv\?"):
        load(path.with_name("trian.csv"))


@pytest.mark.parametrize(("columns", "part"), [
    ("txt=a", "did you mean 'text'?"), ("text=bodi", "did you mean 'body'?"), ("text", "role=column")])  # fmt: skip
def test_bad_mapping(write, columns, part):
    with pytest.raises(InputError) as caught:
        load(write("a.csv", "body,kind\na,b\nc,b\n"), columns)
    assert part in str(caught.value)


def test_problems_of_all_splits_come_together(write, tmp_path):
    write("train.csv", "text,label\n,x\n")
    write("dev.csv", "text,label\na,x\nb,\n")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert "train.csv:2:text" in str(caught.value)
    assert "dev.csv:3:label" in str(caught.value)


def test_hub_name_offline_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(InputError, match="nobody/nothing: neither a file nor a hub dataset in reach; got offline"):
        load("nobody/nothing")
