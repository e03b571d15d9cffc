"""Embeddings: the loss against a loop over passages, pairs of labelled rows and of passages, training on banking77."""

import json
from math import exp, log

import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.collate import collate
from featherweight.data.load import load
from featherweight.data.pairs import pairs_by_label, pairs_of_passages
from featherweight.data.rows import examples
from featherweight.data.types import Example

ROWS = [
    Example("f:1", "my card is lost", choices=("I lost my card", "where is my transfer", "what is the rate")),
    Example("f:2", "exchange rate?", choices=("which rate do you use",)),
    Example("f:3", "card gone", choices=("I lost my card", "hello there")),
]


@pytest.fixture(scope="module")
def minilm(minilm_dir):
    from transformers import AutoModel

    return AutoModel.from_pretrained(minilm_dir).eval()


def alone(model, tokenizer, text):
    """The mean of a text's last states, scaled to length 1; no pads."""
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
    return states.mean(0) / states.mean(0).norm()


def test_loss_is_the_sum_over_rows_of_all_passages_but_equal_ones(minilm, minilm_tokenizer):
    """Rows 1 and 3 have the same positive: neither is the other's negative."""
    task = fw.Embedding(temperature=0.1)
    loss, units = task.loss(minilm, collate(task.encode_all(ROWS, minilm_tokenizer, None), 0).tensors)
    wanted = 0.0
    for row in ROWS:
        query = alone(minilm, minilm_tokenizer, row.text)
        others = [p for other in ROWS for p in other.choices if p != row.choices[0]]
        score = {p: exp(float(query @ alone(minilm, minilm_tokenizer, p)) / 0.1) for p in {*others, row.choices[0]}}
        wanted -= log(score[row.choices[0]] / (score[row.choices[0]] + sum(score[p] for p in others)))
    assert int(units) == 3
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-4)


def test_contrast_by_hand():
    """Orthogonal unit vectors, temperature 1: each row's own passage scores 1, the other's 0: log(1 + 1/e) each."""
    choices = torch.tensor([[[1]], [[2]]])
    loss = fw.Embedding(temperature=1.0).contrast(torch.eye(2), torch.eye(2), choices)
    assert float(loss) == pytest.approx(2 * log(1 + exp(-1)), abs=1e-6)


def test_scores_rank_all_passages_of_the_split():
    """Three distinct passages; the first text finds its own first, the second its own last."""
    made = [([1.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]), ([0.0, 1.0], [[-1.0, -1.0], [1.0, 0.0]])]
    scores = fw.Embedding().score(made, [("a", "b"), ("c", "a")])
    assert scores["hit_rate@1"] == 0.5
    assert scores["mrr"] == pytest.approx((1 + 1 / 3) / 2)
    assert scores["ndcg@10"] == pytest.approx((1 + 1 / 2) / 2)


def test_training_on_pairs_of_one_intent(minilm_dir, minilm_tokenizer, data_dir, tmp_path):
    """Six intents of banking77, other texts of theirs held out."""
    from transformers import AutoModel

    data = load(data_dir / "banking77/train.csv")
    rows = examples(data.train, data.shape)
    intents = sorted({e.label for e in rows})[:6]
    some = {intent: [e for e in rows if e.label == intent] for intent in intents}
    train = pairs_by_label([e for of in some.values() for e in of[:8]])
    held = pairs_by_label([e for of in some.values() for e in of[20:24]])
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"anchor": e.text, "positive": e.choices[0]}) for e in train))
    model = AutoModel.from_pretrained(minilm_dir)
    before = fw.evaluate(model, held, fw.Embedding(), tokenizer=minilm_tokenizer)
    fw.train(model, path, fw.Embedding(), method=fw.LoRA(rank=4), tokenizer=minilm_tokenizer,
             output=tmp_path / "out", lr=2e-3, steps=12, batch=12)  # fmt: skip
    after = fw.evaluate(model, held, fw.Embedding(), tokenizer=minilm_tokenizer)
    assert after.loss < before.loss
    assert set(after.values) == {"hit_rate@1", "hit_rate@10", "mrr", "ndcg@10"}
    found = fw.predict(model, ["my card is lost"], fw.Embedding(), tokenizer=minilm_tokenizer)[0]["embedding"]
    assert len(found) == 384
    assert sum(v * v for v in found) == pytest.approx(1, abs=1e-5)


def test_batches_are_not_cut_into_micro_batches(minilm_tokenizer):
    """What a row is told apart from is its batch: the feed may cut it no further than it was asked to."""
    from featherweight.train.ranks import Ranks
    from featherweight.train.settings import Settings
    from featherweight.train.setup import Material, feed

    rows = [Example(f"f:{i}", "word " * (1 + 60 * (i % 2)), choices=(f"passage {i}",)) for i in range(8)]
    encoded = fw.Embedding().encode_all(rows, minilm_tokenizer, None)
    for task, micro in ((fw.Embedding(), 1), (fw.Choices(), 2)):
        stuff = Material(task, rows, [], None, "rows")
        made = feed(stuff, encoded, 0, None, Settings(batch=8), None, print).step(1, Ranks(torch.device("cpu")), 1)
        assert len(made) == micro


def test_a_file_of_triplets_is_read_by_its_columns(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"query": "q", "positive": "p", "negatives": ["n", "m"]}, {"query": "q", "positive": "p", "negatives": "n"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = load(path)
    assert data.shape.name == "contrast"
    assert [e.choices for e in examples(data.train, data.shape)] == [("p", "n", "m"), ("p", "n")]
    path.write_text("\n".join(map(json.dumps, [{"query": "q", "positive": "p", "negative": "p"},
                                               {"query": "", "positive": "p", "negative": 3}])))  # fmt: skip
    with pytest.raises(InputError) as error:
        load(path)
    lines = [line.split("rows.jsonl:")[1].split(";")[0] for line in str(error.value).splitlines()]
    assert lines == ["1:negative: the positive is among the negatives", "2:query: empty text",
                     "2:negative: not a negative"]  # fmt: skip


def test_pairs_of_labelled_rows():
    rows = [Example(f"f:{i}", f"text {i}", label="ab"[i % 2]) for i in range(6)] + [Example("f:9", "alone", label="c")]
    made = pairs_by_label(rows, seed=3, negatives=2)
    label = {e.text: e.label for e in rows}
    assert [e.where for e in made] == [e.where for e in rows[:6]]
    for e in made:
        assert label[e.choices[0]] == label[e.text]
        assert e.choices[0] != e.text
        assert len(set(e.choices)) == 3
        assert all(label[n] != label[e.text] for n in e.choices[1:])
    assert made == pairs_by_label(rows, seed=3, negatives=2) != pairs_by_label(rows, seed=4, negatives=2)
    with pytest.raises(InputError, match="too few texts of other labels"):
        pairs_by_label(rows[:4], negatives=3)
    with pytest.raises(InputError, match="no label has two texts"):
        pairs_by_label(rows[-1:])


def test_pairs_of_passages():
    rows = [Example("f:1", "One dog. Two cats! Three?"), Example("f:2", "Alone.")]
    (made,) = pairs_of_passages(rows)
    whole = ["One dog.", "Two cats!", "Three?"]
    assert made.text in whole
    assert made.choices == (" ".join(s for s in whole if s != made.text),)
    with pytest.raises(InputError, match="no text has two sentences"):
        pairs_of_passages(rows[1:])


def test_a_model_with_a_head_is_refused(stories, stories_tokenizer):
    with pytest.raises(InputError, match="an encoder without a head"):
        fw.evaluate(stories, ROWS, fw.Embedding(), tokenizer=stories_tokenizer)
    with pytest.raises(InputError, match="f:5: no positive passage"):
        fw.Embedding().encode(Example("f:5", "x"), stories_tokenizer, None)
