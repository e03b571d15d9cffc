"""`evaluate` on real models and rows: equal to a plain loop, whatever the batch, and exact about what is wrong."""

import csv
import json

import pytest

from featherweight.core.errors import InputError
from featherweight.data.types import Example, Turn
from featherweight.evaluate import Scores, evaluate, score
from featherweight.tasks import CausalLM, Classification, Regression


@pytest.fixture(scope="module")
def meanings(data_dir):
    """The first 20 rows of the E2E dev set: 20 texts, some of the same meaning."""
    with (data_dir / "e2e_nlg" / "devset.csv").open(encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(20), strict=False)]
    return [Example(f"devset.csv:{i + 2}", turns=(Turn(f"{row['mr']} || ", False), Turn(row["ref"], True)))
            for i, row in enumerate(rows)]  # fmt: skip


@pytest.fixture(scope="module")
def judge(minilm_dir):
    """An untrained classifier over the real encoder, with its task."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    task = Classification(labels=("0", "1"))
    return AutoModelForSequenceClassification.from_pretrained(minilm_dir, **task.model_options()), task


def reviews(data_dir, count):
    with (data_dir / "sst2" / "dev.tsv").open(encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line, _ in zip(file, range(count + 1), strict=False)]
    return [Example(f"dev.tsv:{i + 1}", row[0], None, row[1]) for i, row in enumerate(rows) if i]


def test_lm_loss_equals_one_row_at_a_time(stories, stories_tokenizer, meanings):
    import torch

    scores = evaluate(stories, meanings, CausalLM(), tokenizer=stories_tokenizer, batch=7)
    total = units = 0
    for row in CausalLM().encode_all(meanings, stories_tokenizer, None):
        labels = torch.tensor([row.labels])
        with torch.no_grad():
            own = stories(input_ids=torch.tensor([row.input_ids]), labels=labels).loss
        trained = int((labels[:, 1:] != -100).sum())
        total, units = total + own.double().item() * trained, units + trained
    assert scores.loss == pytest.approx(total / units, abs=1e-6)
    assert scores["perplexity"] == pytest.approx(2.718281828459045 ** (total / units), rel=1e-5)
    assert (scores.rows, scores.split, scores.truncated) == (20, "rows", 0)


def test_batch_size_changes_nothing(judge, minilm_tokenizer, data_dir):
    model, task = judge
    rows = reviews(data_dir, 40)
    one, many = (evaluate(model, rows, task, tokenizer=minilm_tokenizer, batch=b) for b in (1, 16))
    assert one.loss == pytest.approx(many.loss, abs=1e-6)
    assert one["accuracy"] == many["accuracy"]
    assert set(many.values) == {"accuracy", "macro_f1", "matthews", "f1"}


def test_classification_equals_a_plain_loop(judge, minilm_tokenizer, data_dir):
    import torch

    model, task = judge
    model.train()
    rows = reviews(data_dir, 24)
    scores = evaluate(model, rows, task, tokenizer=minilm_tokenizer)
    assert all(m.training for m in model.modules())
    model.eval()
    hits = 0
    for row in rows:
        with torch.no_grad():
            hits += model(**minilm_tokenizer(row.text, return_tensors="pt")).logits.argmax().item() == int(row.label)
    assert scores["accuracy"] == hits / 24


def test_text_metrics_group_rows_of_one_prompt(stories, stories_tokenizer, meanings, monkeypatch):
    """Twenty rows of a few meanings: one text per meaning, compared with all its references."""
    from featherweight.evaluate import evaluate as verb
    from featherweight.evaluate import text

    seen = {}
    monkeypatch.setitem(text.KINDS, "exact", lambda p, r: seen.update(texts=p, references=r) or {"exact_match": 0.0})
    scores = verb(stories, meanings, CausalLM(max_new_tokens=6), tokenizer=stories_tokenizer, metrics=("loss", "exact"))
    distinct = len({e.turns[0].text for e in meanings})
    assert len(seen["texts"]) == len(seen["references"]) == distinct < 20
    assert sorted(r for refs in seen["references"] for r in refs) == sorted(e.turns[1].text for e in meanings)
    assert scores["exact_match"] == 0.0
    assert scores.loss is not None


def test_e2e_metrics_of_generated_texts(stories, stories_tokenizer, meanings):
    task = CausalLM(max_new_tokens=12)
    scores = evaluate(stories, meanings[:6], task, tokenizer=stories_tokenizer, metrics=("e2e",))
    assert {"bleu", "nist", "rouge_l", "cider", "perplexity"} <= set(scores.values)
    assert 0 <= scores["bleu"] < 0.2


def test_a_file_goes_by_its_name(judge, minilm_tokenizer, tmp_path):
    path = tmp_path / "mails.csv"
    path.write_text("text,label\nfine,1\nawful,0\n", encoding="utf-8")
    model, task = judge
    scores = evaluate(model, str(path), task, tokenizer=minilm_tokenizer)
    assert (scores.rows, scores.split) == (2, "mails.csv")
    with pytest.raises(InputError, match=r"mails.csv: split 'valid': no such split; expected one of train; got train"):
        evaluate(model, str(path), task, tokenizer=minilm_tokenizer, split="valid")


def test_rows_without_answers_say_what_was_looked_for(judge, minilm_tokenizer):
    from featherweight.data.templates import prompted

    with pytest.raises(InputError) as error:
        evaluate(judge[0], prompted([{"sentence": "fine"}], "sst2"), judge[1], tokenizer=minilm_tokenizer)
    said = "the rows have no answers to score; expected rows with label; got columns text, choices; name the column"
    assert said in str(error.value)


def test_the_first_split_with_answers_is_taken_and_named(judge, minilm_tokenizer, tmp_path):
    """A test file without labels (as GLUE's) is passed over; asked for by name, it is refused."""
    for name, text in (("train", "a,1\nb,0\nc,1\n"), ("valid", "fine,1\nawful,0\n"), ("test", "what,\n")):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + text, encoding="utf-8")
    model, task = judge
    assert evaluate(model, tmp_path, task, tokenizer=minilm_tokenizer).split == "valid"
    assert evaluate(model, tmp_path, task, tokenizer=minilm_tokenizer, split="train").rows == 3
    with pytest.raises(InputError, match=r"split 'test': the rows have no answers to score; expected rows with label"):
        evaluate(model, tmp_path, task, tokenizer=minilm_tokenizer, split="test")
    (tmp_path / "test.csv").write_text("text,label\nyes,1\n", encoding="utf-8")
    assert evaluate(model, tmp_path, task, tokenizer=minilm_tokenizer).split == "test"


def test_labels_of_the_model_serve_a_task_without(judge, minilm_tokenizer):
    model, _ = judge
    scores = evaluate(model, [Example("a:1", "good", None, "1")], Classification(), tokenizer=minilm_tokenizer)
    assert scores.rows == 1


def test_models_own_task_and_tokenizer_are_used(judge, minilm_tokenizer):
    model, task = judge
    model.task, model.tokenizer = task, minilm_tokenizer
    try:
        assert evaluate(model, [Example("a:1", "good", None, "1")]).rows == 1
    finally:
        del model.task, model.tokenizer


def test_tokenizer_of_the_models_folder(judge, minilm_tokenizer):
    model, task = judge
    rows = [Example("a:1", "good", None, "1"), Example("a:2", "a longer bad one", None, "0")]
    assert evaluate(model, rows, task).loss == evaluate(model, rows, task, tokenizer=minilm_tokenizer).loss


def test_cut_rows_are_counted(judge, minilm_tokenizer):
    model, task = judge
    rows = [Example("a:1", "word " * 30, None, "1"), Example("a:2", "short", None, "0")]
    assert evaluate(model, rows, task, tokenizer=minilm_tokenizer, length=16).truncated == 1
    assert "truncated" in repr(evaluate(model, rows, task, tokenizer=minilm_tokenizer, length=16))
    long = [Example("a:1", "word " * 900, None, "1")]
    assert evaluate(model, long, task, tokenizer=minilm_tokenizer).truncated == 1
    with pytest.raises(InputError, match="length: no such length; expected 1 to 512; got 600"):
        evaluate(model, long, task, tokenizer=minilm_tokenizer, length=600)


def test_unseen_labels_are_all_named(judge, minilm_tokenizer):
    model, task = judge
    rows = [Example("a.csv:2", "x", None, "1"), Example("a.csv:3", "y", None, "2"), Example("a.csv:4", "z", None, "q")]
    with pytest.raises(InputError) as caught:
        evaluate(model, rows, task, tokenizer=minilm_tokenizer)
    assert [p.where for p in caught.value.problems] == ["a.csv:3", "a.csv:4"]
    assert "one of 0, 1" in str(caught.value)


def test_what_cannot_be_evaluated_says_why(judge, stories, minilm_tokenizer, stories_tokenizer):
    model, task = judge
    labelled = [Example("a:1", "x", None, "1")]
    for call, message in (
        (lambda: evaluate(model, [Example("a:1", "x")], task, tokenizer=minilm_tokenizer), "a:1: nothing to compare"),
        (lambda: evaluate(model, labelled, task, tokenizer=minilm_tokenizer, metrics=("e2e",)), "task without text"),
        (lambda: evaluate(model, labelled, task, tokenizer=minilm_tokenizer, metrics=("e2e2",)), "did you mean 'e2e'"),
        (lambda: evaluate(model.bert, labelled, tokenizer=minilm_tokenizer), "no task for this model"),
        (lambda: evaluate(model, labelled, Regression(), tokenizer=minilm_tokenizer), "expected 1 outputs; got 2"),
        (lambda: evaluate(stories, [Example("a:1", turns=(Turn("x", False),))], CausalLM(),
                          tokenizer=stories_tokenizer), "no row has a token with loss"),
        (lambda: evaluate(stories, labelled, CausalLM(), tokenizer=minilm_tokenizer), "does not belong to this model"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            call()


def test_encoded_rows_can_be_kept(judge, minilm_tokenizer, data_dir):
    model, task = judge
    rows = reviews(data_dir, 8)
    encoded = task.encode_all(rows, minilm_tokenizer, 64)
    kept = score(model, task, rows, minilm_tokenizer, encoded=encoded)
    assert kept.to_dict() == score(model, task, rows, minilm_tokenizer, length=64).to_dict()


def test_evaluation_leaves_no_trace(stories, stories_tokenizer, meanings):
    """Weights, random numbers and the ability to train are as before."""
    import torch

    before = {name: t.clone() for name, t in stories.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    evaluate(stories, meanings[:4], CausalLM(max_new_tokens=3), tokenizer=stories_tokenizer, metrics=("exact",))
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(before[name], t) for name, t in stories.state_dict().items())
    ids = torch.tensor([[1, 5, 6, 7]])
    loss, _ = CausalLM().loss(stories, {"input_ids": ids, "labels": ids})
    loss.backward()
    assert stories.model.layers[0].mlp.up_proj.weight.grad.any()
    stories.zero_grad(set_to_none=True)


def test_scores_print_and_serialize():
    scores = Scores({"accuracy": 0.5}, rows=3, loss=1.25, split="valid")
    assert repr(scores) == "valid\n  rows              3\n  loss         1.2500\n  accuracy     0.5000"
    assert json.loads(json.dumps(scores.to_dict())) == {
        "split": "valid", "rows": 3, "truncated": 0, "loss": 1.25, "accuracy": 0.5,
    }  # fmt: skip
    assert scores["loss"] == 1.25
    with pytest.raises(KeyError):
        scores["f1"]


def test_regression(minilm_dir, minilm_tokenizer, data_dir):
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_dir, **Regression().model_options())
    rows = [Example(f"a:{i}", text, other, label) for i, (text, other, label) in enumerate(
        [("a cat", "a dog", 2.0), ("a man runs", "a man is running", 4.5), ("rain", "an egg", 0.0)])]  # fmt: skip
    scores = evaluate(model, rows, Regression(), tokenizer=minilm_tokenizer)
    assert set(scores.values) == {"pearson", "spearman", "mse"}
    assert scores["mse"] == pytest.approx(scores.loss, rel=1e-5)


def test_the_verb_is_callable_whatever_was_imported_before(judge, minilm_tokenizer):
    """`fw.evaluate` is the package's name too: both calls reach the function."""
    import featherweight as fw
    import featherweight.evaluate

    model, task = judge
    rows = [Example("a:1", "good", None, "1")]
    first = fw.evaluate(model, rows, task, tokenizer=minilm_tokenizer)
    second = featherweight.evaluate(model, rows, task, tokenizer=minilm_tokenizer)
    assert first.to_dict() == second.to_dict() == evaluate(model, rows, task, tokenizer=minilm_tokenizer).to_dict()
