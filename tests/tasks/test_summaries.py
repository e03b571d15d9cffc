"""Summaries are a use of the tasks that write: DialogSum's file as it is, ROUGE against the best of several."""

import pytest

import featherweight as fw
from featherweight.data.load import load
from featherweight.data.rows import examples


def test_dialogsum_is_read_trained_on_and_scored_by_rouge(data_dir, stories, stories_tokenizer):
    data = load(data_dir / "dialogsum" / "dialogsum.dev.jsonl")
    assert (data.shape.name, data.shape.columns) == ("completion", {"prompt": "dialogue", "completion": "summary"})
    rows = sorted(examples(data.train, data.shape), key=lambda e: len(e.turns[0].text))
    train, held = [r for r in rows[:24] if r not in rows[2:24:6]], rows[2:24:6]
    task = fw.CausalLM(max_new_tokens=12)
    given = {"tokenizer": stories_tokenizer, "length": 384}
    before = fw.evaluate(stories, held, task, **given)
    by_line = {row.where: row.fields for row in data.train}
    fields = [{k: by_line[e.where][k] for k in ("dialogue", "summary")} for e in train]
    fw.train(stories, fields, task, method=fw.LoRA(rank=4), name="short", steps=6, batch=6, lr=1e-2, **given)
    try:
        after = fw.evaluate(stories, held, task, metrics=("loss", "rouge"), **given)
    finally:
        fw.detach(stories, "short")
    assert after.loss < before.loss
    assert all(0 <= after[name] <= 1 for name in ("rouge1", "rouge2", "rougeL"))


def test_a_dialogue_with_several_summaries_is_scored_against_the_best(stories, stories_tokenizer):
    """Rows of one dialogue are one text to write; each kind of ROUGE takes the summary that fits it best."""
    said = "Tom: hi\nLily: hi"
    text = fw.predict(stories, [{"dialogue": said, "summary": "x"}], fw.CausalLM(max_new_tokens=8),
                      tokenizer=stories_tokenizer)[0]["text"]  # fmt: skip
    rows = [{"dialogue": said, "summary": "nothing of it"}, {"dialogue": said, "summary": text}]
    scores = fw.evaluate(stories, rows, fw.CausalLM(max_new_tokens=8), tokenizer=stories_tokenizer,
                         metrics=("rouge",))  # fmt: skip
    assert scores["rouge1"] == scores["rouge2"] == scores["rougeL"] == pytest.approx(1.0)
