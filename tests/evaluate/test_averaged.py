"""Templates averaged: the mean of what each says alone, on a real model."""

import pytest

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.templates import prompted, prompts
from featherweight.evaluate.averaged import averaged, mean

ROWS = [{"sentence": "a good film", "label": 1}, {"sentence": "so bad and sad", "label": 0},
        {"sentence": "we had fun", "label": 1}]  # fmt: skip


def test_the_mean_of_what_each_template_says(stories, stories_tokenizer):
    scores = averaged(stories, ROWS, "sst2", tokenizer=stories_tokenizer)
    each = {}
    for template in prompts("sst2").templates:
        data = prompted(ROWS, "sst2", template)
        own = fw.evaluate(stories, data, fw.Choices(), tokenizer=stories_tokenizer)
        assert scores[f"accuracy/{template}"] == own["accuracy"]
        each[template] = [a["probabilities"] for a in fw.predict(stories, [
            {"prompt": row.fields["text"], "choices": row.fields["choices"]} for row in data.train
        ], fw.Choices(), tokenizer=stories_tokenizer)]  # fmt: skip
    right = 0
    for i, row in enumerate(ROWS):
        means = [sum(made[i][c] for made in each.values()) / len(each) for c in (0, 1)]
        right += (means[1] > means[0]) == row["label"]
    assert scores["accuracy"] == right / 3
    assert scores["median"] == sum(scores[f"accuracy/{t}"] for t in each) / 2
    assert scores.rows == 3


def test_averages_by_hand():
    """Two templates disagree on the first row; the surer one wins."""
    assert mean([[[0.9, 0.1], [0.5, 0.5]], [[0.4, 0.6], [0.25, 0.75]]]) == [
        [pytest.approx(0.65), pytest.approx(0.35)], [0.375, 0.625],
    ]  # fmt: skip


def test_unlike_choices_cannot_be_averaged(stories, stories_tokenizer, tmp_path):
    (tmp_path / "a.jinja").write_text('{% set choices = ["x", "y"] %}\n{{ t }}')
    (tmp_path / "b.jinja").write_text('{% set choices = ["x", "y", "z"] %}\n{{ t }}')
    with pytest.raises(InputError, match=r"data:1: the templates offer unlike numbers of choices.*'a': 2, 'b': 3"):
        averaged(stories, [{"t": "so", "label": 0}], tmp_path, tokenizer=stories_tokenizer)
