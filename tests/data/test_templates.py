"""Templates: every set reads its data as they are, every label lands on its choice, every bad row is named."""

import json

import pytest

from featherweight.core.errors import InputError
from featherweight.data.read import read
from featherweight.data.rows import examples
from featherweight.data.templates import HOME, prompted, prompts, template_sets, trained_on
from featherweight.data.types import Example

FEWGLUE = {"boolq": "BoolQ", "cb": "CB", "copa": "COPA", "rte": "RTE", "wic": "WiC", "wsc": "WSC"}
TFEW = {"anli-r1": "anli", "anli-r2": "anli", "anli-r3": "anli", "boolq": "boolq", "cb": "cb", "copa": "copa",
        "h-swag": "hellaswag", "rte": "rte", "sst2": "sst2", "wic": "wic", "winogrande": "winogrande",
        "wsc": "wsc"}  # fmt: skip
RAFT = ("ade_corpus_v2", "banking_77", "neurips_impact_statement_risks", "one_stop_english", "overruling",
        "semiconductor_org_types", "systematic_review_inclusion", "tai_safety_research", "terms_of_service",
        "tweet_eval_hate", "twitter_complaints")  # fmt: skip


def made(data):
    return examples(data.train, data.shape)


def test_every_set_has_several_templates():
    assert all(len(prompts(name).templates) > 1 for name in template_sets())
    assert {*FEWGLUE, *TFEW.values(), *RAFT} == set(template_sets())


@pytest.mark.parametrize("name", RAFT)
def test_rafts_files_are_read_as_they_are(name, data_dir):
    """Every class of task.json has its choice, and every row the choice of its class."""
    folder = data_dir / "raft" / name
    classes = json.loads((folder / "task.json").read_text())["label_columns"]["Label"]
    raw = read(folder / "train.csv")
    for template in prompts(name).templates:
        rows = made(prompted(folder / "train.csv", name, template))
        assert len(rows) == len(raw) == 50
        assert {len(row.choices) for row in rows} == {len(classes)}
        assert [classes[row.label] for row in rows] == [row.fields["Label"] for row in raw]
    assert prompts(name).labels in (tuple(classes), ())  # Banking77's are those of the data


def test_the_classes_beside_the_data_are_the_labels(data_dir):
    """Banking77: 77 choices from task.json, in words."""
    row = made(prompted(data_dir / "raft" / "banking_77" / "train.csv", "banking_77", "about"))[0]
    assert (len(row.choices), row.choices[row.label]) == (77, "change pin")
    with pytest.raises(InputError, match="'labels' is undefined"):
        prompted([{"Query": "where is my card?", "Label": "card_arrival"}], "banking_77")


@pytest.mark.parametrize("name", FEWGLUE)
def test_fewglue_is_read_as_it_is(name, data_dir):
    for template in prompts(name).templates:
        data = prompted(data_dir / "fewglue" / FEWGLUE[name] / "train.jsonl", name, template)
        rows = made(data)
        assert data.shape.labelled
        assert len(rows) == 32
        assert all(0 <= row.label < len(row.choices) for row in rows)


@pytest.mark.parametrize("name", TFEW)
def test_t_fews_files_are_read_as_they_are(name, data_dir):
    for file in sorted((data_dir / "tfew_fewshot" / name).glob("*/*_seed.jsonl")):
        rows = made(prompted(file, TFEW[name]))
        raw = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        assert [row.label for row in rows] == [row["label"] for row in raw]


def test_fewglue_and_t_few_agree_on_labels(data_dir):
    """Rows that both have, by their premise and hypothesis: names in one, numbers in the other, the same choice."""
    for name in ("rte", "cb"):
        template = next(iter(prompts(name).templates))
        files = [data_dir / "fewglue" / FEWGLUE[name] / f"{part}.jsonl" for part in ("train", "val")]
        ours = {e.text: e.label for file in files for e in made(prompted(file, name, template))}
        files = (data_dir / "tfew_fewshot" / name).glob("*/*.jsonl")
        theirs = {e.text: e.label for file in files for e in made(prompted(file, name, template))}
        shared = ours.keys() & theirs.keys()
        assert shared
        assert all(ours[text] == theirs[text] for text in shared)


def test_a_rendered_row():
    row = {"premise": "It rained.", "hypothesis": "It was wet.", "label": "not_entailment"}
    (rte,) = made(prompted([row], "rte", "true_false"))
    assert rte.text == "Text: It rained.\nClaim: It was wet.\nGoing by the text alone, the claim is"
    assert rte.choices[rte.label] == "false"
    row = {"premise": "The man ran.", "choice1": "He was late.", "choice2": "He sat.", "question": "cause", "label": 0}
    (copa,) = made(prompted([row], "copa", "because"))
    assert (copa.text, copa.choices[copa.label]) == ("The man ran because", "He was late.")


def test_templates_take_turns_and_unlabelled_rows_have_no_answer():
    rows = [{"sentence": "fine", "label": 1}, {"sentence": "fine", "label": 1}, {"sentence": "fine", "label": 1}]
    texts = [row.text for row in made(prompted(rows, "sst2"))]
    assert texts[0] == texts[2] != texts[1]
    data = prompted([{"sentence": "fine"}], "sst2")
    assert not data.shape.labelled
    assert made(data)[0].label is None


def test_bad_rows_are_named_together(tmp_path):
    rows = [{"premise": "a", "hypothesis": "b", "label": "maybe"}, {"premise": "a", "label": 0},
            {"premise": "a", "hypothesis": "b", "label": 2}]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError) as error:
        prompted(path, "rte", "question")
    lines = [line.split("rows.jsonl:")[1] for line in str(error.value).splitlines()]
    assert lines[0].startswith("1:label: no such label; expected one of entailment")
    assert lines[1].startswith("2:hypothesis: missing field; expected text, for the template; got nothing")
    assert lines[2].startswith("3:label: no such label")


def test_templates_of_ones_own(tmp_path):
    (tmp_path / "own.jinja").write_text('{% set choices = ["a", "b"] %}\nX {{ x }}\n')
    assert made(prompted([{"x": 1, "label": 1}], tmp_path))[0].text == "X 1"
    (tmp_path / "broken.jinja").write_text("{% set %}")
    with pytest.raises(InputError, match=r"broken.jinja:1: a broken template"):
        prompts(tmp_path)
    (tmp_path / "broken.jinja").write_text("no choices")
    with pytest.raises(InputError, match=r"broken.jinja: the template sets no choices; expected .*set choices"):
        prompted([{"x": 1, "label": 1}], tmp_path, "broken")


def test_all_that_is_wrong_in_a_folder_is_said_at_once(tmp_path):
    (tmp_path / "a.jinja").write_text("{{ x ")
    (tmp_path / "b.jinja").write_text("{{ x }}")
    (tmp_path / "labels.json").write_text('{"yes": 0,}')
    with pytest.raises(InputError) as error:
        prompts(tmp_path)
    said = str(error.value).splitlines()
    assert [line.split(": ")[0].removeprefix(f"{tmp_path}/") for line in said] == [
        "a.jinja:1",
        "b.jinja",
        "labels.json:1",
    ]


@pytest.mark.parametrize("text", ["[]", "{}", '{"a": "0", "b": 1}', '{"a": 0, "b": 2}', '{"a": true}', '{"a": -1}'])
def test_numbers_of_labels_that_are_none(tmp_path, text):
    (tmp_path / "own.jinja").write_text('{% set choices = ["a", "b"] %}{{ x }}')
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InputError, match=r"labels.json: not the numbers of labels"):
        prompts(tmp_path)


def test_a_column_that_no_row_has_is_one_problem():
    rows = [{"message": "m", "desk": "x", "label": "travel"}] * 40
    with pytest.raises(InputError) as error:
        prompted(rows, "rte", every=True)
    (problem,) = error.value.problems
    assert str(problem).startswith("data: no row has what the templates of rte print; expected columns hypothesis, "
                                   "premise; got columns message, desk, label; ")  # fmt: skip


def test_bad_fields_and_bad_answers_of_other_rows_at_once():
    """Also what only the next stage sees: a row without a label among labelled ones."""
    row = {"premise": "p", "hypothesis": "h", "label": 0}
    rows = [row, {**row, "premise": ""}, {**row, "label": None}, {"premise": "p", "label": 0}]
    with pytest.raises(InputError) as error:
        prompted(rows, "rte", every=True)
    said = [str(p).partition(";")[0] for p in error.value.problems]
    assert len(said) == 3
    assert [s for s in said if "label" not in s] == ["data:2:premise: empty text", "data:4:hypothesis: missing field"]
    assert any(s.startswith("data:3:label") for s in said)


def test_a_template_may_say_where_the_label_is(tmp_path):
    (tmp_path / "own.jinja").write_text('{% set label = desk %}{% set choices = ["a", "b"] %}\n{{ x }}')
    (tmp_path / "labels.json").write_text('{"money": 0, "travel": 1}')
    rows = [{"x": "one", "desk": "travel"}, {"x": "two", "desk": "money"}]
    assert [row.label for row in made(prompted(rows, tmp_path))] == [1, 0]
    assert [row.label for row in made(prompted([{"x": "one"}, {"x": "y", "desk": ""}], tmp_path))] == [None, None]
    with pytest.raises(InputError, match=r"data:1:label: no such label; expected one of money, travel; got 'food'"):
        prompted([{"x": "one", "desk": "food"}], tmp_path)
    assert made(prompted([{"x": "one", "desk": "food"}], tmp_path, answers=False))[0].label is None


ROWS = [{"sentence": f"film {i}", "label": i % 2} for i in range(8)]


def test_one_template_by_its_path(tmp_path):
    named, apart = prompted(ROWS, "sst2/review"), prompted(ROWS, "sst2", "review")
    assert [r.fields for r in named.train] == [r.fields for r in apart.train]
    (tmp_path / "own.jinja").write_text('{% set choices = ["a", "b"] %}\n{{ sentence }}')
    (tmp_path / "two.jinja").write_text('{% set choices = ["a", "b"] %}\n2 {{ sentence }}')
    assert made(prompted(ROWS, f"{tmp_path}/two"))[0].text == "2 film 0"
    with pytest.raises(InputError, match=r"no such template.*did you mean 'review'"):
        prompted(ROWS, "sst2/revue")


def test_every_template_for_training_rows_and_one_in_turn_for_the_others():
    data = prompted({"train": ROWS, "valid": ROWS}, "sst2", every=True)
    assert [row.where for row in data.train[:4]] == ["data:1", "data:1", "data:2", "data:2"]
    assert len({row.fields["text"] for row in data.train}) == 16
    assert len(data.valid) == 8
    assert [r.fields for r in trained_on(ROWS, "sst2", 0).train] == [r.fields for r in data.train]


def test_templates_drawn_by_a_seed():
    drawn = [[row.text for row in made(trained_on(ROWS, "sst2/drawn", seed))] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    alone = [[row.text for row in made(prompted(ROWS, "sst2", t))] for t in prompts("sst2").templates]
    assert all(text in both for text, both in zip(drawn[0], zip(*alone, strict=True), strict=True))
    assert 1 < sum(text == first for text, first in zip(drawn[0], alone[0], strict=True)) < 8


def test_a_mixture_has_a_set_for_each_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "b.jsonl").write_text(json.dumps({"premise": "p", "hypothesis": "h", "label": 1}))
    source = f"{tmp_path}/a.jsonl:0.7,{tmp_path}/b.jsonl:0.3"
    data = prompted(source, "sst2/review,rte/question")
    assert data.weights == (0.7, 0.3)
    assert [row.choices for row in made(data)] == [("bad", "good")] * 8 + [("yes", "no")]
    with pytest.raises(InputError, match=r"templates and files do not match; expected one set, or 2; got 3"):
        prompted(source, "sst2,rte,cb")


def test_an_empty_field_that_a_template_prints_is_a_problem(tmp_path):
    """Once a row, whatever the number of templates; what a template asks about (`if`, `or`) may be empty."""
    rows = [{"premise": " ", "hypothesis": "h", "label": 0}, {"premise": "p", "hypothesis": None, "label": 0}]
    with pytest.raises(InputError) as error:
        prompted(rows, "rte", every=True)
    assert [str(p) for p in error.value.problems] == [
        "data:1:premise: empty text; expected text, for the template",
        "data:2:hypothesis: empty text; expected text, for the template",
    ]
    with pytest.raises(InputError, match="data:1:choice2: empty text"):
        prompted([{"premise": "p", "choice1": "a", "choice2": "", "question": "cause", "label": 0}], "copa")
    with pytest.raises(InputError, match=r"data:1:label: no such choice; expected 0 to 1"):
        prompted([{"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 2}], "copa")
    (tmp_path / "own.jinja").write_text('{% set choices = ["a", "b"] %}\n{% if t %}{{ t }}{% endif %}{{ u or "-" }}')
    assert made(prompted([{"t": "", "u": "", "label": 0}], tmp_path))[0].text == "-"


def test_columns_of_several_words_by_their_plain_names():
    assert made(prompted([{"Tweet text": "hm", "Label": "complaint"}], "twitter_complaints"))[0].label == 0
    with pytest.raises(InputError, match=r"data:1:Tweet text: empty text"):
        prompted([{"Tweet text": "", "Label": "complaint"}], "twitter_complaints")
    with pytest.raises(InputError, match=r"data:1:Label: no such label; expected one of complaint, no complaint"):
        prompted([{"Tweet text": "hm", "Label": "Complaint"}], "twitter_complaints")


def test_unknown_names_say_what_is_near():
    with pytest.raises(InputError, match=r"no prompt templates.*did you mean 'rte'"):
        prompted([{"a": 1}], "rtee")
    with pytest.raises(InputError, match=r"no such template.*did you mean 'question'"):
        prompted([{"a": 1}], "rte", "questions")


def test_a_long_text_keeps_its_question(stories):
    """Beside an encoder and behind a decoder alike: what is cut is the oldest, and the tokenizer is as it was."""
    from featherweight.data.choices import encode_after, encode_beside

    stories.pad_token = stories.pad_token or stories.unk_token
    row = Example("f:1", "Once upon a time " * 20 + "there was a question?", label=0, choices=("yes", "no"))
    side = stories.truncation_side
    for encode in (encode_beside, encode_after):
        (made,) = encode([row], stories, 24, True)
        assert made.truncated > 0
        assert stories.decode(made.input_ids).rstrip("</s>").endswith("was a question?")
    assert stories.truncation_side == side


def test_the_templates_are_shipped():
    import tomllib

    project = tomllib.loads((HOME.parents[3] / "pyproject.toml").read_text())
    assert "data/prompts/*/*" in project["tool"]["setuptools"]["package-data"]["featherweight"]
