"""Multiple choice: each choice scored as if it were alone, the loss by hand, rows of unlike numbers of choices."""

import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.collate import collate
from featherweight.data.load import load
from featherweight.data.types import Example

ROWS = [
    Example("f:1", "The kettle boiled, so she", label=1, choices=("painted the gate", "made some tea", "sang")),
    Example("f:2", "It rained.", label=0, choices=("He took an umbrella.", "He watered the garden twice today.")),
]


@pytest.fixture(scope="module")
def model(minilm_dir):
    return fw.load_base(minilm_dir, fw.MultipleChoice()).eval()


def test_loss_and_probabilities_are_those_of_choices_read_alone(model, minilm_tokenizer):
    task = fw.MultipleChoice()
    batch = collate(task.encode_all(ROWS, minilm_tokenizer, None), 0).tensors
    with torch.no_grad():
        loss, units, made = task.examine(model, batch, minilm_tokenizer)
    wanted = 0.0
    for row, probabilities in zip(ROWS, made, strict=True):
        scores = []
        for choice in row.choices:
            one = minilm_tokenizer(row.text, choice, return_tensors="pt")
            with torch.no_grad():
                scores.append(model(**{k: v[:, None] for k, v in one.items()}).logits[0, 0])
        p = torch.stack(scores).softmax(0)
        assert probabilities == pytest.approx(p.tolist(), abs=1e-5)
        wanted -= float(p[row.label].log())
    assert int(units) == 2
    assert float(loss) == pytest.approx(wanted, abs=1e-5)


def test_it_is_transformers_own_loss_where_all_rows_have_as_many_choices(model, minilm_tokenizer):
    rows = [ROWS[1], Example("f:3", "Night fell.", label=1, choices=("The sun rose.", "Stars came out."))]
    task = fw.MultipleChoice()
    with torch.no_grad():
        loss, _ = task.loss(model, collate(task.encode_all(rows, minilm_tokenizer, None), 0).tensors)
        texts = [[(r.text, c) for c in r.choices] for r in rows]
        flat = minilm_tokenizer([p for row in texts for p in row], padding=True, return_tensors="pt")
        given = {k: v.view(2, 2, -1) for k, v in flat.items()}
        own = model(**given, labels=torch.tensor([0, 1])).loss
    assert float(loss) == pytest.approx(2 * float(own), abs=1e-5)


def test_long_texts_are_cut_and_counted(minilm_tokenizer):
    row = Example("f:1", "word " * 50, label=0, choices=("one", "two"))
    (item,) = fw.MultipleChoice().encode_all([row], minilm_tokenizer, 16)
    assert item.more["windows"] == [16, 16]
    assert item.truncated > 0


def test_answers_and_bad_rows(minilm_tokenizer):
    task = fw.MultipleChoice()
    assert task.answer([0.2, 0.7, 0.1]) == {"label": 1, "probability": 0.7, "probabilities": [0.2, 0.7, 0.1]}
    assert task.score([[0.2, 0.8], [0.6, 0.4]], [1, 1]) == {"accuracy": 0.5}
    with pytest.raises(InputError, match="f:5: nothing to choose from"):
        task.encode_all([Example("f:5", "x")], minilm_tokenizer, None)
    bare, whole = Example("f:6", "x", choices=("a", "b")), Example("f:5", "x", choices=("a", "b"), label=0)
    with pytest.raises(InputError, match=r"^f:6:label: no answer in a training row; expected the number"):
        task.fit([whole, bare, bare])
    with pytest.raises(InputError, match=r"^f: no row has an answer to train on; expected a column label.*--columns"):
        task.fit([bare, Example("f:7", "x", choices=("a", "b"))])


def test_rows_of_swag_kind(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"ctx": "She sat down and", "endings": ["ate.", "flew."], "label": "0"}\n')
    data = load(path)
    assert data.shape.name == "choices"
