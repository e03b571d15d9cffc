"""Files and rows of spans, tags and facts: read as they are, every bad one named by file and line."""

import json

import pytest

from featherweight.core.errors import InputError
from featherweight.data.facts import relation_templates
from featherweight.data.load import load
from featherweight.data.read import read
from featherweight.data.rows import examples

CONTEXT = "Rome is old. Some call Rome eternal."


def made(path, rows):
    path.write_text("\n".join(rows if isinstance(rows[0], str) else map(json.dumps, rows)) + "\n")
    data = load(path)
    return examples(data.train, data.shape), data


def lines(error):
    return [line.split("rows.jsonl:")[1] for line in str(error.value).splitlines()]


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Rome"], "answer_start": [23]},
        {"text": "Rome", "answer_start": 23},
        [{"text": "Rome", "answer_start": 23}],
        [{"text": " Rome ", "answer_start": 22}, {"text": "Rome", "answer_start": 23}],
    ],
)
def test_every_form_of_an_answer_with_its_place(tmp_path, answers):
    row = {"id": "1", "title": "t", "context": CONTEXT, "question": "Which city?", "answers": answers}
    (example,), data = made(tmp_path / "rows.jsonl", [row])
    assert data.shape.name == "spans"
    assert (example.text, example.pair, example.label) == ("Which city?", CONTEXT, ((23, "Rome"),))


def test_an_answer_without_its_place_stands_wherever_its_words_do(tmp_path):
    pairs = ((CONTEXT, "Rome"), (CONTEXT, ""), ("A party of art.", "art"))
    rows = [{"question": "q", "context": c, "answer": a} for c, a in pairs]
    found, _ = made(tmp_path / "rows.jsonl", rows)
    assert [e.label for e in found] == [((0, "Rome"), (23, "Rome")), (), ((11, "art"),)]


def test_wrong_answers_are_named_with_the_text_that_stands_there(tmp_path):
    rows = [
        {"question": "q", "context": CONTEXT, "answers": {"text": ["Rome"], "answer_start": [22]}},
        {"question": "q", "context": CONTEXT, "answers": {"text": ["ETERNAL"], "answer_start": [3]}},
        {"question": "q", "context": CONTEXT, "answers": ["Paris"]},
        {"question": "q", "context": CONTEXT, "answers": 7},
        {"question": "q", "context": CONTEXT, "answers": {"text": ["Rome"], "answer_start": [0, 1]}},
        {"question": "q", "context": "", "answers": []},
    ]
    with pytest.raises(InputError) as error:
        made(tmp_path / "rows.jsonl", rows)
    first, second, third, fourth, fifth, sixth = lines(error)
    assert first.startswith("1:answers: the answer does not stand where answer_start says")
    assert "got ' Rom'" in first
    assert "it stands at 0" in first
    assert "the context has 'eternal' at 28" in second
    assert third.startswith("3:answers: the answer is not in the context; expected a piece of it")
    assert fourth.startswith("4:answers: not an answer")
    assert fifth.startswith("5:answers: not an answer")
    assert sixth.startswith("6:context: empty text")


def test_a_table_of_questions(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f'question,context,answer,answer_start\nWhich?,"{CONTEXT}",Rome,23\nWhy?,"{CONTEXT}",,\n')
    data = load(path)
    assert [e.label for e in examples(data.train, data.shape)] == [((23, "Rome"),), ()]


def test_questions_without_an_answer_anywhere_are_unlabelled(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f'question,context,answer\nWhich?,"{CONTEXT}",\n')
    data = load(path)
    assert data.shape.labelled is False
    assert examples(data.train, data.shape)[0].label is None


def test_columns_can_be_mapped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"ask": "q", "body": CONTEXT, "found": "old"}))
    data = load(path, "text=ask,text_pair=body,answers=found")
    assert examples(data.train, data.shape)[0].label == ((8, "old"),)


def test_squads_own_file(tmp_path):
    qas = [
        {"id": "a1", "question": "Which?", "answers": [{"text": "Rome", "answer_start": 0}], "is_impossible": False},
        {"id": "a2", "question": "Who?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "x"}]},
    ]
    whole = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}
    path = tmp_path / "dev.json"
    for text in (json.dumps(whole), json.dumps(whole, indent=1)):
        path.write_text(text)
        data = load(path)
        assert [e.label for e in examples(data.train, data.shape)] == [((0, "Rome"),), ()]
        assert [row.where for row in data.train] == [f"{path}:a1", f"{path}:a2"]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}))
    with pytest.raises(InputError, match="not SQuAD's file"):
        read(path)


CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC

# a comment of its own
# CD I-NP O
Peter NNP I-NP I-PER
"""


@pytest.mark.parametrize("name", ["eng.conll", "eng.txt", "eng.iob"])
@pytest.mark.parametrize("tabs", [False, True])
def test_conll_as_it_is(tmp_path, name, tabs):
    path = tmp_path / name
    text = CONLL if not name.endswith("txt") else CONLL.replace("# a comment of its own\n", "")
    path.write_text(text.replace(" ", "\t") if tabs else text)
    data = load(path)
    first, second = examples(data.train, data.shape)
    assert first.words == ("EU", "rejects", "German")
    assert first.label == ("I-ORG", "O", "I-MISC")
    assert second.words == ("#", "Peter")
    assert first.where == f"{path}:3"
    assert data.train[0].fields["column2"] == ["NNP", "VBZ", "JJ"]
    data = load(path, "tokens=tokens,tags=column3")
    assert examples(data.train, data.shape)[1].label == ("I-NP", "I-NP")


def test_conll_with_ragged_lines(tmp_path):
    path = tmp_path / "rows.conll"
    path.write_text("EU NNP I-ORG\nrejects O\n\nPeter NNP x I-PER\n")
    with pytest.raises(InputError) as error:
        load(path)
    assert [line.split("rows.conll:")[1][:30] for line in str(error.value).splitlines()] == [
        "2: another number of columns; ", "4: another number of columns; "]  # fmt: skip


def test_words_alone_are_unlabelled_and_prose_is_no_conll(tmp_path):
    path = tmp_path / "new.conll"
    path.write_text("Peter\nsleeps\n")
    data = load(path)
    assert data.shape.labelled is False
    prose = tmp_path / "prose.txt"
    prose.write_text("one day\ntwo days\n")
    assert [row.fields for row in read(prose)] == [{"text": "one day"}, {"text": "two days"}]


def test_tokens_and_tags_in_rows(tmp_path):
    rows = [{"id": 1, "tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]},
            {"id": 2, "tokens": ["a", "b"], "ner_tags": [3, 0]}]  # fmt: skip
    found, _ = made(tmp_path / "rows.jsonl", rows)
    assert [e.label for e in found] == [("B-ORG", "O"), ("3", "0")]
    bad = [{"tokens": ["a", "b"], "tags": ["O"]}, {"tokens": ["a", ""], "tags": ["O", "O"]}, {"tokens": [], "tags": []},
           {"tokens": ["a"]}]  # fmt: skip
    with pytest.raises(InputError) as error:
        made(tmp_path / "rows.jsonl", bad)
    assert [line.split(";")[0] for line in lines(error)] == [
        "1:tags: not one tag for each token", "2:tokens: an empty token", "3:tokens: not a list of words",
        "3:tags: not a list of words", "4:tags: missing field"]  # fmt: skip
    table = tmp_path / "rows.csv"
    table.write_text("tokens,tags\nEU rejects,B-ORG O\n")
    data = load(table)
    assert examples(data.train, data.shape)[0].words == ("EU", "rejects")


def test_facts_and_their_relations(tmp_path):
    rows = [{"sub_label": "Peru", "obj_label": "Lima", "predicate_id": "P36", "uuid": "k", "obj_uri": "Q2868"}]
    (fact,), data = made(tmp_path / "rows.jsonl", rows)
    assert data.shape.name == "fact"
    assert (fact.text, fact.pair, fact.label) == ("Peru", "P36", "Lima")
    rows = [{"sub_label": "Peru", "obj_label": "Lima", "template": "[X]: [Y]"},
            {"sub_label": "Peru", "obj_label": "Lima", "template": "no places"},
            {"sub_label": "", "obj_label": None, "template": "[X]: [Y]"}]  # fmt: skip
    with pytest.raises(InputError) as error:
        made(tmp_path / "rows.jsonl", rows)
    assert [line.split(";")[0] for line in lines(error)] == [
        "2:template: not a template", "3:sub_label: empty text", "3:obj_label: empty text"]  # fmt: skip
    path = tmp_path / "relations.jsonl"
    path.write_text('{"relation": "P36", "template": "The capital of [X] is [Y] .", "type": "1-1"}\n')
    assert relation_templates(path) == {"P36": "The capital of [X] is [Y] ."}
    path.write_text('{"relation": "P36", "template": "a"}\n{"relation": "P36", "template": "b"}\n{"relation": "P1"}\n')
    with pytest.raises(InputError) as error:
        relation_templates(path)
    assert "2:relation: a relation twice" in str(error.value)
    assert "relations.jsonl:3: not a relation" in str(error.value)
