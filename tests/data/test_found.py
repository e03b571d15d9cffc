"""What is found out about files nobody registered, and what is said where it cannot be."""

import pytest

from featherweight.core.errors import InputError
from featherweight.data.inspect import inspect
from featherweight.data.load import load


def test_lines_led_by_class_numbers_or_label_marks_are_label_and_text(tmp_path):
    for name, marks in (("trec", "0 1"), ("fast", "__label__no __label__yes")):
        lines = [f"{marks.split()[i % 2]} how far is it to {i} ?" for i in range(8)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    trec, fast = (load(tmp_path / f"{name}.txt") for name in ("trec", "fast"))
    assert trec.shape.name == fast.shape.name == "classification"
    assert trec.train[3].fields == {"label": "1", "text": "how far is it to 3 ?"}
    assert [row.fields["label"] for row in fast.train[:2]] == ["no", "yes"]
    assert trec.train[3].where.endswith("trec.txt:4")
    assert "one of 2 labels" in trec.notes[0]


@pytest.mark.parametrize("lines", [["1 first", "2 second", "3 third", "4 fourth"], ["7 a", "7 b"], ["0 a", "1 b", "c"]])
def test_numbered_lines_are_plain_text(tmp_path, lines):
    (tmp_path / "a.txt").write_text("\n".join(lines))
    data = load(tmp_path / "a.txt")
    assert data.shape.name == "text"
    assert [row.fields["text"] for row in data.train] == lines


def test_columns_that_are_not_used_are_named():
    data = load([{"Title": "a", "Abstract Note": "b", "Label": c} for c in "xy"])
    assert data.notes == ("columns that are not used: Abstract Note (--columns maps others)",)
    assert load([{"text": "a", "label": "x"}]).notes == ()


def test_unknown_columns_come_with_a_first_row_and_a_mapping_to_type():
    rows = [{"Paper title": f"a rather long title {i}", "Kind": "ab"[i % 2], "ID": str(i)} for i in range(6)]
    with pytest.raises(InputError) as caught:
        load(rows)
    assert "first row: Paper title='a rather long title 0', Kind='a', ID='0'" in str(caught.value)
    assert '--columns "text=Paper title,label=Kind"' in str(caught.value)
    with pytest.raises(InputError, match=r'--columns "text=Paper title" \(roles'):
        load([{"Paper title": "long enough", "ID": "1"}])
    assert load(rows, "text=Paper title,label=Kind").shape.name == "classification"


@pytest.mark.parametrize("names", [("trainset.csv", "devset.csv"), ("my.train.csv", "my.dev.csv"),
                                   ("train-00000-of-00001.csv", "validation-00000-of-00001.csv")])  # fmt: skip
def test_splits_go_by_part_of_a_name(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("text,label\na,x\nb,y\n")
    data = load(tmp_path)
    assert data.train[0].where.endswith(f"{names[0]}:2")
    assert data.valid[0].where.endswith(f"{names[1]}:2")


def test_the_very_name_wins_over_a_part(tmp_path):
    for name in ("train.csv", "train_old.csv"):
        (tmp_path / name).write_text("text,label\na,x\nb,y\n")
    assert load(tmp_path).train[0].where.endswith("train.csv:2")


def test_rows_are_shown_without_a_tokenizer_too():
    shown = inspect(load([{"prompt": "say", "completion": "food"}]), None, None, None).samples
    assert shown[0].pieces == [("say\n", False), ("food", True)]
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    spoken = inspect(load([{"messages": chat}]), None, None, None).samples[0]
    assert spoken.pieces == [
        ("user: hi\n", False),
        ("assistant: ho\n", True),
    ]
    labelled = inspect(load([{"premise": "a", "hypothesis": "b", "label": "x"}]), None, None, None).samples[0]
    assert labelled.pieces == [("a", False), ("\nb", False)]
    assert labelled.label == "x"


FILES = {
    "raft/one_stop_english/train.csv": ("classification", {"text": "Article", "label": "Label"}),
    "gsm8k/train.jsonl": ("completion", {"prompt": "question", "completion": "answer"}),
    "dialogsum/dialogsum.dev.jsonl": ("completion", {"prompt": "dialogue", "completion": "summary"}),
    "stsb/dev.tsv": ("regression", {"text": "sentence1", "text_pair": "sentence2", "score": "score"}),
    "mrpc/dev.tsv": ("pair", {"text": "#1 String", "text_pair": "#2 String", "label": "Quality"}),
    "e2e_nlg": ("completion", {"prompt": "mr", "completion": "ref"}),
    "fewglue/CB/train.jsonl": ("pair", {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
}


@pytest.mark.parametrize("file", FILES)
def test_public_files_are_known_by_their_columns(data_dir, file):
    shape = load(data_dir / file).shape
    assert (shape.name, shape.columns) == FILES[file]


def test_public_files_that_name_no_columns_show_the_way(data_dir):
    with pytest.raises(InputError, match="--columns text=4,label=2 "):
        load(data_dir / "cola/dev.tsv")
    assert load(data_dir / "cola/dev.tsv", "text=4,label=2").shape.name == "classification"


def test_trec_is_read_as_it_is(data_dir, tmp_path):
    (tmp_path / "trec.txt").write_bytes((data_dir / "sentconv/TREC.train.all").read_bytes())
    data = load(tmp_path / "trec.txt")
    assert len(data.train) == 5452
    assert len({row.fields["label"] for row in data.train}) == 6
    assert any("latin-1" in note for note in data.notes)


def test_a_mixture_of_unlike_columns_is_one_shape_or_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "how", "answer": "so", "id": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"mr": "name[x]", "ref": "x is"}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "a", "label": "x"}\n')
    mixed = load(f"{tmp_path}/a.jsonl:0.7,{tmp_path}/b.jsonl:0.3")
    assert mixed.shape.name == "completion"
    assert [row.fields for row in mixed.train] == [
        {"prompt": "how", "completion": "so"},
        {"prompt": "name[x]", "completion": "x is"},
    ]
    assert [row.source for row in mixed.train] == [0, 1]
    assert mixed.train[1].where.endswith("b.jsonl:1")
    with pytest.raises(InputError, match=r"different things.*a\.jsonl: completion.*c\.jsonl: classification.*--from"):
        load([tmp_path / "a.jsonl", tmp_path / "c.jsonl"])
