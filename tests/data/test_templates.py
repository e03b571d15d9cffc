"""Templates: every set reads its data as they are, every label lands on its choice, every bad row is named."""

import json

import pytest

from featherweight.core.errors import InputError
from featherweight.data.rows import examples
from featherweight.data.templates import HOME, prompted, prompts, template_sets

FEWGLUE = {"boolq": "BoolQ", "cb": "CB", "copa": "COPA", "rte": "RTE", "wic": "WiC", "wsc": "WSC"}
TFEW = {"anli-r1": "anli", "anli-r2": "anli", "anli-r3": "anli", "boolq": "boolq", "cb": "cb", "copa": "copa",
        "h-swag": "hellaswag", "rte": "rte", "sst2": "sst2", "wic": "wic", "winogrande": "winogrande",
        "wsc": "wsc"}  # fmt: skip


def made(data):
    return examples(data.train, data.shape)


def test_every_set_has_several_templates():
    assert all(len(prompts(name).templates) > 1 for name in template_sets())
    assert {*FEWGLUE, *TFEW.values()} == set(template_sets())


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
    assert lines[1].startswith("2: the template does not fit the row; expected 'hypothesis' is undefined")
    assert lines[2].startswith("3:label: no such label")


def test_templates_of_ones_own(tmp_path):
    (tmp_path / "own.jinja").write_text('{% set choices = ["a", "b"] %}\nX {{ x }}\n')
    assert made(prompted([{"x": 1, "label": 1}], tmp_path))[0].text == "X 1"
    (tmp_path / "broken.jinja").write_text("{% set %}")
    with pytest.raises(InputError, match=r"broken.jinja:1: a broken template"):
        prompts(tmp_path)
    (tmp_path / "broken.jinja").write_text("no choices")
    with pytest.raises(InputError, match=r"data:1: the template does not fit the row; expected .*choices"):
        prompted([{"x": 1, "label": 1}], tmp_path, "broken")


def test_unknown_names_say_what_is_near():
    with pytest.raises(InputError, match=r"no prompt templates.*did you mean 'rte'"):
        prompted([{"a": 1}], "rtee")
    with pytest.raises(InputError, match=r"no such template.*did you mean 'question'"):
        prompted([{"a": 1}], "rte", "questions")


def test_the_templates_are_shipped():
    import tomllib

    project = tomllib.loads((HOME.parents[3] / "pyproject.toml").read_text())
    assert "data/prompts/*/*" in project["tool"]["setuptools"]["package-data"]["featherweight"]
