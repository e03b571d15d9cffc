"""Classification, multi-label and regression: what they learn from examples, their losses, answers and scores."""

import pytest

from featherweight.core.errors import InputError
from featherweight.data.types import Example
from featherweight.tasks import CausalLM, Classification, MultiLabel, Regression, Seq2Seq, Task, task_for
from featherweight.tasks.labels import label_name, ordered

TEXTS = ["a fine day", "it rains and rains and it will not stop", "sun", "who knows"]


def rows(*labels, pair=None):
    return [Example(f"f.csv:{i + 2}", TEXTS[i % 4], pair, label) for i, label in enumerate(labels)]


@pytest.fixture(scope="module")
def classifier(minilm_dir):
    import torch
    from transformers import AutoModelForSequenceClassification

    def load(task):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(minilm_dir, **task.model_options()).eval()

    return load


def batch(task, examples, tokenizer):
    from featherweight.data.collate import collate

    return collate(task.encode_all(examples, tokenizer, 64), tokenizer.pad_token_id).tensors


def test_labels_are_learned_sorted_and_stored_as_text():
    assert Classification().fit(rows("b", "a", "b")).labels == ("a", "b")
    assert Classification().fit(rows(10, 2, 2.0, "2")).labels == ("2", "10")
    assert MultiLabel().fit(rows(("x", "z"), (), ("y",))).labels == ("x", "y", "z")
    assert ordered(["-1", "10", "2"]) == ("-1", "2", "10")
    assert [label_name(v) for v in (True, 1.5, 3.0, "a")] == ["true", "1.5", "3", "a"]


def test_given_labels_keep_their_order():
    assert Classification(labels=("no", "yes", "maybe")).fit(rows("yes", "no")).labels == ("no", "yes", "maybe")


def test_pairs_are_noticed():
    task = Classification().fit(rows("a", "b", pair="second"))
    assert task.pair
    with pytest.raises(InputError, match=r"f\.csv:2: a row of another form; expected two texts"):
        task.ask(rows("a"), None, None)


@pytest.mark.parametrize(
    ("task", "examples", "message"),
    [
        (Classification(), rows("a", None, "b", None), r"f\.csv:3: no label.*\n.*f\.csv:5: no label"),
        (Classification(), rows("a", "a"), "fewer than two labels"),
        (Classification(labels=("a", "b")), rows("a", "bb", "q"), r"f\.csv:3.*got 'bb'.*\n.*f\.csv:4.*got 'q'"),
        (MultiLabel(), rows((), ()), "no row has any label"),
        (MultiLabel(labels=("news",)), rows(("new",)), r"f\.csv:2: label unseen.*did you mean 'news'"),
        (Regression(), rows(1.0, "high", None, float("nan")), r"f\.csv:4: no score.*\n.*f\.csv:3.*\n.*f\.csv:5"),
    ],
)
def test_bad_examples_are_all_named(task, examples, message):
    with pytest.raises(InputError, match=message):
        task.fit(examples)


def test_nouns_survive_their_file_form():
    for task in (Classification(labels=("a", "b"), pair=True), MultiLabel(labels=("x",)), Regression(), CausalLM(),
                 Seq2Seq(max_new_tokens=9)):  # fmt: skip
        assert Task.from_dict(task.to_dict()) == task
    assert repr(CausalLM(max_new_tokens=9)) == "CausalLM(max_new_tokens=9)"
    with pytest.raises(InputError, match="did you mean 'causallm'"):
        Task.from_dict({"type": "causalml"})


def test_shapes_pick_tasks():
    heads = ("classification", "pair", "multilabel", "regression")
    texts = ("completion", "instruction", "messages", "text")
    assert [type(task_for(s)) for s in heads] == [Classification, Classification, MultiLabel, Regression]
    assert {type(task_for(s)) for s in texts} == {CausalLM}
    with pytest.raises(InputError, match="no task takes this shape"):
        task_for("image")


def test_every_shape_of_data_has_a_task():
    from featherweight.data.rows import BUILDERS

    assert all(name in task_for(name).shapes for name in BUILDERS)


def test_classification_equals_the_models_own_loss(classifier, minilm_tokenizer):
    import torch

    examples = rows("b", "a", "c", "b")
    task = Classification().fit(examples)
    model = classifier(task)
    tensors = batch(task, examples, minilm_tokenizer)
    with torch.no_grad():
        loss, units = task.loss(model, tensors)
        own = model(**tensors).loss
        chances = task.predict(model, tensors, minilm_tokenizer)
    assert int(units) == 4
    assert (loss / units).item() == pytest.approx(own.item(), abs=1e-6)
    assert [sum(c) for c in chances] == pytest.approx([1.0] * 4)
    assert tensors["labels"].tolist() == [1, 0, 2, 1]


def test_losses_add_up_over_any_split(classifier, minilm_tokenizer):
    import torch

    examples = rows("b", "a", "c", "b")
    task = Classification().fit(examples)
    model = classifier(task)
    with torch.no_grad():
        whole, units = task.loss(model, batch(task, examples, minilm_tokenizer))
        parts = [task.loss(model, batch(task, part, minilm_tokenizer)) for part in (examples[:1], examples[1:])]
    assert sum(u for _, u in parts) == units
    assert sum(p for p, _ in parts).item() == pytest.approx(whole.item(), abs=1e-5)


def test_pair_has_two_segments(minilm_tokenizer):
    examples = rows("a", "b", pair="second text")
    row = Classification().fit(examples).encode(examples[0], minilm_tokenizer, 64)
    assert set(row.token_type_ids) == {0, 1}
    assert row.labels == 0


def test_multilabel_equals_the_models_own_loss(classifier, minilm_tokenizer):
    import torch

    examples = rows(("b", "a"), (), ("c",))
    task = MultiLabel().fit(examples)
    model = classifier(task)
    tensors = batch(task, examples, minilm_tokenizer)
    with torch.no_grad():
        loss, units = task.loss(model, tensors)
        own = model(**tensors).loss
    assert tensors["labels"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert (loss / units).item() == pytest.approx(own.item(), abs=1e-6)


def test_regression_equals_the_models_own_loss(classifier, minilm_tokenizer):
    import torch

    examples = rows(1.5, 3, "4")
    task = Regression().fit(examples)
    model = classifier(task)
    tensors = batch(task, examples, minilm_tokenizer)
    with torch.no_grad():
        loss, units = task.loss(model, tensors)
        own = model(**tensors).loss
    assert (loss / units).item() == pytest.approx(own.item(), rel=1e-6)
    assert len(task.predict(model, tensors, minilm_tokenizer)) == 3


def test_answers_and_scores():
    task = Classification(labels=("no", "yes"))
    given = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]
    assert task.answer(given[1]) == {"label": "yes", "probability": 0.8, "probabilities": {"no": 0.2, "yes": 0.8}}
    scores = task.score(given, ["no", "yes", "no"])
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert set(scores) == {"accuracy", "f1", "macro_f1", "matthews"}
    many = MultiLabel(labels=("a", "b"))
    assert many.answer([0.5, 0.49])["labels"] == ["a"]
    assert many.score([[0.9, 0.1], [0.9, 0.9]], [("a",), ("b",)])["accuracy"] == 0.5
    assert Regression().answer(2.5) == {"score": 2.5}
    assert Regression().score([1.0, 2.0], [2.0, 4.0])["mse"] == 2.5


def test_best_metric_is_among_the_scores():
    assert Classification.best[0] in Classification(labels=("a", "b")).score([[1, 0]], ["a"])
    assert MultiLabel.best[0] in MultiLabel(labels=("a",)).score([[1]], [("a",)])
    assert Regression.best[0] in Regression().score([1.0, 2.0], [1.0, 2.0])
    assert CausalLM.best == Seq2Seq.best == ("loss", False)


def test_decoder_without_pad_token(data_dir):
    """GPT-2 has none: a padded batch gives each row the logits that it has alone."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification

    from featherweight.tasks.check import pad_id

    class Padless:
        pad_token_id = None
        eos_token_id = 2

    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, num_labels=3, bos_token_id=1, eos_token_id=2)
    ).eval()
    model.config.pad_token_id = None
    assert pad_id(model, Padless()) == 2
    assert model.config.pad_token_id == 2
    task = Classification(labels=("a", "b", "c"))
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7, 8], [9, 10, 2, 2]])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        both = task.logits(model, {"input_ids": ids, "attention_mask": mask})
        alone = task.logits(model, {"input_ids": ids[1:, :2], "attention_mask": mask[1:, :2]})
    assert torch.allclose(both[1:], alone, atol=1e-6)
