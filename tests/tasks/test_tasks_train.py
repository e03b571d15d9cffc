"""Every task on its example rows, with methods of unlike kinds: the loss falls below its start, and what was trained
answers like that again after it was saved; entities are found by a real encoder."""

from pathlib import Path

import pytest
import torch

import featherweight as fw
from featherweight.data.load import load
from featherweight.data.rows import examples

SETS = Path(__file__).parents[2] / "examples"
TASKS = {
    "question_answering": fw.QuestionAnswering(),
    "token_classification": fw.TokenClassification(),
    "multiple_choice": fw.MultipleChoice(),
    "probing": fw.Probing(template="[X] is [Y] ."),
}
METHODS = [fw.LoRA(rank=2), fw.Houlsby(bottleneck=4), fw.BitFit(), fw.Prompt(tokens=4), fw.Prefix(tokens=4, hidden=8)]
PAIRS = [(task, METHODS[(i + k) % 5]) for i, task in enumerate(TASKS) for k in (0, 2)]


@pytest.fixture(scope="module")
def small(minilm_tokenizer, tmp_path_factory):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    folder = tmp_path_factory.mktemp("small")
    BertForMaskedLM(BertConfig(vocab_size=len(minilm_tokenizer), **shape)).save_pretrained(folder)
    minilm_tokenizer.save_pretrained(folder)
    return folder


def rows_of(name, count=16):
    data = load(SETS / name)
    return examples(data.train, data.shape)[:count], data.train[:count]


@pytest.mark.parametrize(("name", "method"), PAIRS, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_the_loss_falls_and_what_was_trained_is_saved(small, tmp_path, name, method):
    rows, raw = rows_of(name)
    task = TASKS[name].fit(rows)
    model = fw.load_base(small, task)
    before = fw.evaluate(model, rows, task)
    fw.train(model, [row.fields for row in raw], task, method=method, output=tmp_path / "out", steps=5, batch=8,
             lr=2e-2, threads=1)  # fmt: skip
    after = fw.evaluate(model, rows, task)
    assert after.loss < before.loss
    again = fw.load_model(tmp_path / "out", base=small)
    assert type(again.task) is type(task)
    assert fw.evaluate(again, rows).loss == pytest.approx(after.loss, abs=1e-4)
    assert fw.predict(again, rows[:3]) == fw.predict(model, rows[:3])


def test_a_decoder_reads_spans_tags_and_facts(stories, stories_tokenizer):
    """Tokenizers without a class token, and models that see to the left alone."""
    from transformers import LlamaForQuestionAnswering, LlamaForTokenClassification

    spans, raw = rows_of("question_answering", 8)
    asked = fw.QuestionAnswering().fit(spans)
    model = LlamaForQuestionAnswering(stories.config)
    model.transformer.load_state_dict(stories.model.state_dict())
    before = fw.evaluate(model, spans, asked, tokenizer=stories_tokenizer, length=200)
    fw.train(model, [r.fields for r in raw], asked, method=fw.LoRA(rank=2), tokenizer=stories_tokenizer, steps=6,
             batch=8, lr=1e-2, length=200)  # fmt: skip
    assert fw.evaluate(model, spans, asked, tokenizer=stories_tokenizer, length=200).loss < before.loss
    tags, raw = rows_of("token_classification", 8)
    task = fw.TokenClassification().fit(tags)
    model = LlamaForTokenClassification(stories.config.__class__(**{**stories.config.to_dict(), "num_labels": 7}))
    before = fw.evaluate(model, tags, task, tokenizer=stories_tokenizer)
    fw.train(model, [r.fields for r in raw], task, method=fw.LoRA(rank=2), tokenizer=stories_tokenizer, steps=6,
             batch=8, lr=1e-2)  # fmt: skip
    assert fw.evaluate(model, tags, task, tokenizer=stories_tokenizer).loss < before.loss
    facts = [{"subject": "Lily", "object": "the", "template": "[X] saw [Y]"}]
    (found,) = fw.predict(stories, facts, fw.CausalProbing(), tokenizer=stories_tokenizer)
    assert found["text"] in found["tokens"]


def test_entities_are_found_by_a_real_encoder(minilm_dir):
    """Half of the sentences to learn from, others to be judged by: more entities than the untrained head finds."""
    rows, raw = rows_of("token_classification", 24)
    held = load(SETS / "token_classification" / "test.conll")
    held = examples(held.train, held.shape)
    task = fw.TokenClassification().fit(rows)
    model = fw.load_base(minilm_dir, task)
    before = fw.evaluate(model, held, task)
    fw.train(model, [row.fields for row in raw], task, method=fw.LoRA(rank=8, targets="linear"), steps=16, batch=8,
             lr=4e-3, threads=1)  # fmt: skip
    after = fw.evaluate(model, held, task)
    assert after.loss < before.loss
    assert after["f1"] > max(before["f1"], 0.3)
