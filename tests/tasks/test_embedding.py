"""Embeddings: the loss against a loop over passages, pairs of labelled rows and of passages, training on banking77."""

import json
from copy import deepcopy
from dataclasses import replace
from math import exp, log, log2

import numpy as np
import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.collate import collate
from featherweight.data.load import load
from featherweight.data.pairs import pairs_by_label, pairs_of_pairs, pairs_of_passages, rows_of
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


ROWS_IN_DICTS = rows_of(ROWS)


def fresh(model):
    return deepcopy(model)


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
    """Orthogonal unit vectors, temperature 1: each row's own passage scores 1, the other's 0: log(1 + 1/e) each. With
    one label, or one text, the other's passage does not count: no loss is left."""
    batch = {"input_ids": torch.tensor([[3], [4]]), "attention_mask": torch.ones(2, 1),
             "labels": torch.tensor([-1, -1]), "choices": torch.tensor([[[1]], [[2]]])}  # fmt: skip
    task, eye = fw.Embedding(temperature=1.0), torch.eye(2)
    assert float(task.contrast(eye, eye, batch)) == pytest.approx(2 * log(1 + exp(-1)), abs=1e-6)
    assert float(task.contrast(eye, eye, batch | {"labels": torch.tensor([7, 7])})) == 0
    assert float(task.contrast(eye, eye, batch | {"input_ids": torch.tensor([[3], [3]])})) == 0
    assert float(task.contrast(eye, eye, batch | {"labels": torch.tensor([7, 8])})) > 0.6
    itself = batch | {"input_ids": torch.tensor([[2], [4]])}  # the first text is the second row's passage
    assert float(task.contrast(eye, eye, itself)) == pytest.approx(log(1 + exp(-1)), abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_a_large_batch_in_chunks_is_the_same_batch(method, minilm, minilm_tokenizer):
    """Loss and gradient with 2 texts embedded at a time are those of all at once."""
    found = {}
    for chunk in (0, 2):
        task, model = fw.Embedding(chunk=chunk), fresh(minilm)
        torch.manual_seed(0)
        fw.attach(model, {"lora": fw.LoRA(rank=2), "prompt": fw.Prompt(tokens=2)}[method], "a")
        trained = [p for p in model.double().parameters() if p.requires_grad]
        for p in trained:
            torch.nn.init.normal_(p, std=0.05)
        loss, _ = task.loss(model, collate(task.encode_all(ROWS, minilm_tokenizer, None), 0).tensors)
        found[chunk] = (loss.detach(), *torch.autograd.grad(loss, trained))
    for a, b in zip(found[0], found[2], strict=True):
        assert (a - b).abs().max() <= 1e-10 * a.abs().max()


def test_chunks_hold_less(minilm, minilm_tokenizer):
    """Tensors kept for the backward pass: a chunked batch keeps a fraction of a whole one's."""
    rows = [Example(f"f:{i}", f"text {i} " * 8, choices=(f"passage {i} " * 8,)) for i in range(16)]
    sizes = {}
    for chunk in (0, 4):
        model, task, seen = fresh(minilm), fw.Embedding(chunk=chunk), {}
        fw.attach(model, fw.LoRA(rank=2), "a")
        batch = collate(task.encode_all(rows, minilm_tokenizer, None), 0).tensors
        weights = {p.data_ptr() for p in model.parameters()}

        def keep(t, seen=seen, weights=weights):
            seen[t.data_ptr()] = 0 if t.data_ptr() in weights else t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            task.loss(model, batch)
        sizes[chunk] = sum(seen.values())
    assert sizes[4] < 0.05 * sizes[0]


def arrays(*made):
    return [(np.array(text), np.array(own)) for text, own in made]


def test_scores_rank_all_passages_of_the_split():
    """Three distinct passages; the first text finds its own first, the second its own last."""
    made = arrays(([1.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]), ([0.0, 1.0], [[-1.0, -1.0], [1.0, 0.0]]))
    rows = [Example("f:1", "x", choices=("a", "b")), Example("f:2", "y", choices=("c", "a"))]
    scores = fw.Embedding().score(made, rows)
    assert [scores[f"hit_rate@{k}"] for k in (1, 3, 5, 10)] == [0.5, 1, 1, 1]
    assert scores["mrr"] == pytest.approx((1 + 1 / 3) / 2)
    assert scores["ndcg@10"] == pytest.approx((1 + 1 / 2) / 2)


def test_what_belongs_to_a_text_is_found_whichever_row_says_so():
    """The passages of all rows with its label are relevant; the text itself, a passage of another row, is not there."""
    made = arrays(([1.0, 0.0], [[0.6, 0.8]]), ([0.6, 0.8], [[1.0, 0.0]]), ([0.0, 1.0], [[0.0, 1.0]]))
    rows = [Example("f:1", "a", label="u", choices=("b",)), Example("f:2", "b", label="u", choices=("a",)),
            Example("f:3", "c", label="v", choices=("d",))]  # fmt: skip
    scores = fw.Embedding().score(made, rows)
    # a: b (.6) before d (0); b: d (.8) before a (.6); c: d first
    assert scores["hit_rate@1"] == pytest.approx(2 / 3)
    assert scores["mrr"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    alone = [replace(e, label=None) for e in rows[:2]] + [Example("f:3", "a", choices=("d",))]
    scores = fw.Embedding().score(made, alone)  # two rows of the text a: b and d belong to it
    assert scores["ndcg@10"] == pytest.approx((1 + 1 / log2(3) + 1) / 3)


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
    path.write_text("\n".join(map(json.dumps, rows_of(train))))
    assert examples(load(path).train, load(path).shape) == [replace(e, where=f"{path}:{i + 1}", source=0)
                                                            for i, e in enumerate(train)]  # fmt: skip
    model = AutoModel.from_pretrained(minilm_dir)
    before = fw.evaluate(model, held, fw.Embedding(), tokenizer=minilm_tokenizer)
    fw.train(model, path, fw.Embedding(), method=fw.LoRA(rank=4), tokenizer=minilm_tokenizer,
             output=tmp_path / "out", lr=2e-3, steps=12, batch=12)  # fmt: skip
    after = fw.evaluate(model, held, fw.Embedding(), tokenizer=minilm_tokenizer)
    assert after.loss < before.loss
    assert after["ndcg@10"] > before["ndcg@10"]
    assert set(after.values) == {"hit_rate@1", "hit_rate@3", "hit_rate@5", "hit_rate@10", "mrr", "ndcg@10"}
    found = fw.predict(model, ["my card is lost"], fw.Embedding(), tokenizer=minilm_tokenizer)[0]["embedding"]
    assert len(found) == 384
    assert sum(v * v for v in found) == pytest.approx(1, abs=1e-5)


METHODS = [fw.LoRA(rank=2), fw.IA3(), fw.BitFit(), fw.Houlsby(bottleneck=2), fw.Prefix(tokens=2), fw.Prompt(tokens=2),
           fw.Compacter(bottleneck=4), fw.Full()]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_any_method_trains_an_encoder(method, minilm_tokenizer):
    """Each brings the positives nearer, and leaves the base's vectors when it is switched off."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                 intermediate_size=48)).eval()  # fmt: skip
    model.tokenizer = minilm_tokenizer
    start, base = fw.evaluate(model, ROWS, fw.Embedding()).loss, fw.embed(model, ["my card"])
    fw.train(model, ROWS_IN_DICTS, fw.Embedding(chunk=2), method=method, name="a", steps=12, batch=3, lr=3 * method.lr)
    assert fw.evaluate(model, ROWS, fw.Embedding()).loss < start
    with fw.switch(model, None):
        assert np.array_equal(fw.embed(model, ["my card"]), base)
    assert not np.array_equal(fw.embed(model, ["my card"]), base)


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


def test_passages_of_so_many_sentences():
    text = Example("f:1", "One. Two. Three. Four. Five.")
    made = pairs_of_passages([text], sentences=2)
    assert [{e.text, e.choices[0]} for e in made] == [{"One.", "Two."}, {"Three.", "Four."}]
    with pytest.raises(InputError, match="too few sentences"):
        pairs_of_passages([text], sentences=1)


def test_pairs_that_are_said_to_belong_together():
    """What another label says of the same first text is a hard negative; pairs of no positive row are left out."""
    rows = [Example("f:1", "a", "b", "yes"), Example("f:2", "a", "c", "no"), Example("f:3", "d", "e", "no"),
            Example("f:4", "f", "g", "yes")]  # fmt: skip
    made = pairs_of_pairs(rows, ["yes"])
    assert [(e.text, e.choices, e.label) for e in made] == [("a", ("b", "c"), None), ("f", ("g",), None)]
    assert rows_of(made) == [{"anchor": "a", "positive": "b", "negatives": ["c"]}, {"anchor": "f", "positive": "g"}]
    with pytest.raises(InputError, match=r"no such label of pairs.*yes, no"):
        pairs_of_pairs(rows, ["yess"])


def test_a_model_with_a_head_is_refused(stories, stories_tokenizer):
    with pytest.raises(InputError, match="an encoder without a head"):
        fw.evaluate(stories, ROWS, fw.Embedding(), tokenizer=stories_tokenizer)
    with pytest.raises(InputError, match="f:5: no positive passage"):
        fw.Embedding().encode(Example("f:5", "x"), stories_tokenizer, None)
