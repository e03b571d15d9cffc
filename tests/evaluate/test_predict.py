"""`predict` and `generate`: answers in the order of the rows, whatever form the rows come in."""

import json

import pytest

from featherweight.core.errors import InputError
from featherweight.data.types import Example
from featherweight.evaluate import generate, predict
from featherweight.tasks import CausalLM, Classification, MultiLabel, Regression

TEXTS = ["it is good", "a very long and winding sentence about nothing much at all", "bad", "so so I would say"]


@pytest.fixture(scope="module")
def judge(minilm_dir):
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    task = Classification(labels=("bad", "fair", "good"))
    return AutoModelForSequenceClassification.from_pretrained(minilm_dir, **task.model_options()), task


@pytest.fixture(scope="module")
def alone(judge, minilm_tokenizer):
    """The probabilities of each text by the bare model, one at a time."""
    import torch

    model = judge[0].eval()
    with torch.no_grad():
        return [model(**minilm_tokenizer(t, return_tensors="pt")).logits[0].softmax(-1).tolist() for t in TEXTS]


def check(answers, alone):
    assert len(answers) == len(alone)
    for answer, chances in zip(answers, alone, strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(chances, abs=1e-5)
        assert answer["probability"] == max(answer["probabilities"].values())
        assert answer["label"] == ["bad", "fair", "good"][chances.index(max(chances))]


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_texts(judge, minilm_tokenizer, alone, batch):
    model, task = judge
    check(predict(model, TEXTS, task, tokenizer=minilm_tokenizer, batch=batch), alone)


@pytest.mark.parametrize("labels", [None, "unseen"])
def test_dicts_with_or_without_labels(judge, minilm_tokenizer, alone, labels):
    model, task = judge
    rows = [{"text": t} | ({"label": labels} if labels else {}) for t in TEXTS]
    check(predict(model, rows, task, tokenizer=minilm_tokenizer), alone)


def test_files(judge, minilm_tokenizer, alone, tmp_path):
    model, task = judge
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8")
    check(predict(model, path, task, tokenizer=minilm_tokenizer), alone)
    table = tmp_path / "rows.csv"
    table.write_text("id,review\n" + "".join(f"{i},{t}\n" for i, t in enumerate(TEXTS)), encoding="utf-8")
    check(predict(model, str(table), task, tokenizer=minilm_tokenizer, columns={"text": "review"}), alone)


def test_examples(judge, minilm_tokenizer, alone):
    model, task = judge
    check(predict(model, [Example("x", t) for t in TEXTS], task, tokenizer=minilm_tokenizer), alone)


def test_modes_are_restored(judge, minilm_tokenizer, alone):
    model, task = judge
    model.train()
    check(predict(model, TEXTS, task, tokenizer=minilm_tokenizer), alone)
    assert all(m.training for m in model.modules())
    model.eval()


@pytest.mark.parametrize(("task", "keys"), [(MultiLabel(labels=("a", "b", "c")), {"labels", "probabilities"}),
                                            (Regression(), {"score"})])  # fmt: skip
def test_answers_of_other_tasks(minilm_dir, minilm_tokenizer, task, keys):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(minilm_dir, **task.model_options())
    answers = predict(model, TEXTS[:2], task, tokenizer=minilm_tokenizer)
    assert [set(a) for a in answers] == [keys] * 2
    json.dumps(answers)


def test_texts_are_continued(stories, stories_tokenizer):
    answers = predict(stories, ["Once upon a time", "Lily"], CausalLM(max_new_tokens=16), tokenizer=stories_tokenizer)
    assert answers[0]["text"].startswith(", there was a little girl")
    assert [a["text"] for a in answers] == generate(
        stories, ["Once upon a time", "Lily"], tokenizer=stories_tokenizer, max_new_tokens=16
    )


def test_prompts_end_as_in_training(stories, stories_tokenizer):
    """A prompt without its answer is encoded as the front of the row with one."""
    from featherweight.evaluate.source import questions

    ids = [CausalLM().ask(questions([row]), stories_tokenizer, None)[0].input_ids
           for row in ({"prompt": "name[Eagle]"}, {"prompt": "name[Eagle]", "completion": "The Eagle."})]  # fmt: skip
    whole = CausalLM().ask(training([{"prompt": "name[Eagle]", "completion": "The Eagle."}]), stories_tokenizer, None)
    assert ids[0] == ids[1] == whole[0].input_ids


def training(rows):
    from featherweight.data.read import read
    from featherweight.data.rows import examples
    from featherweight.data.shape import shape_of

    found = read(rows)
    return examples(found, shape_of(found))


def test_prompts_too_long_leave_room_for_the_answer(stories, stories_tokenizer):
    answers = predict(stories, ["big dog " * 600], CausalLM(max_new_tokens=8), tokenizer=stories_tokenizer)
    assert answers[0]["text"]


def test_generate_samples_on_request(stories, stories_tokenizer):
    import torch

    def draw(seed):
        torch.manual_seed(seed)
        return generate(stories, ["Once"], tokenizer=stories_tokenizer, max_new_tokens=20, do_sample=True)

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_generate_with_an_encoder_decoder(stories_tokenizer):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=512, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).eval()
    prompts = ["Once upon a time", "Lily"]
    texts = generate(model, prompts, tokenizer=stories_tokenizer, max_new_tokens=5)
    assert texts == [generate(model, [p], tokenizer=stories_tokenizer, max_new_tokens=5)[0] for p in prompts]


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "nothing to predict"), (["a", {"text": "b"}], r"rows\[1\]: not a text.*got dict"),
     ([{"nothing": 1, "known": 2}], "columns say nothing we know"), ("missing.csv", "no such file")],
)  # fmt: skip
def test_bad_rows(judge, minilm_tokenizer, rows, message):
    model, task = judge
    with pytest.raises(InputError, match=message):
        predict(model, rows, task, tokenizer=minilm_tokenizer)


@pytest.mark.parametrize("prompts", ["a text", [""], [3]])
def test_bad_prompts(stories, stories_tokenizer, prompts):
    with pytest.raises(InputError, match="not a list of prompts"):
        generate(stories, prompts, tokenizer=stories_tokenizer)


def test_no_tokenizer(judge):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(InputError, match=r"no tokenizer for this model; give tokenizer="):
        predict(BertForSequenceClassification(config), TEXTS, Classification(labels=("a", "b")))
