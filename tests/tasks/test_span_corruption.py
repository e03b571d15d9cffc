"""Span corruption: the target that the paper describes, transformers' own loss, one question per text in eval mode."""

import pytest
import torch

import featherweight as fw
from featherweight.data.collate import collate
from featherweight.data.corruption import span_counts
from featherweight.data.rows import examples
from featherweight.data.shape import Shape
from featherweight.data.types import Row

TEXTS = [
    "The mill stands by the river, and its wheel has turned for two hundred years without a pause.",
    "Every spring the children of the village come to see how flour is made.",
    "Bread.",
]


def shaped(texts):
    rows = [Row({"text": text}, f"row:{i}") for i, text in enumerate(texts, 1)]
    return examples(rows, Shape("text", {"text": "text"}))


@pytest.fixture(scope="session")
def words():
    """A tokenizer of characters with T5's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted({c for text in TEXTS for c in text})
    vocabulary = {t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", *letters])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=[f"<extra_id_{i}>" for i in range(10)], model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


@pytest.fixture
def model(words):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=len(words), d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=1,
                      decoder_start_token_id=0, dropout_rate=0.0)  # fmt: skip
    return T5ForConditionalGeneration(config)


@pytest.fixture
def batch(words):
    return collate(fw.SpanCorruption().encode_all(shaped(TEXTS), words, None), words.pad_token_id).tensors


def test_inputs_and_targets_hold_the_text_between_them(model, batch, words):
    model.train()
    torch.manual_seed(0)
    ids, mask, targets = fw.SpanCorruption().hide(model, batch)
    marks = [words.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(10)]
    for text, kept, there, told in zip(TEXTS, ids, mask, targets, strict=True):
        kept, told = kept[there.bool()].tolist(), told[told >= 0].tolist()
        hidden, spans = span_counts(len(text), 0.15, 3.0)
        assert len(told) == hidden + spans + 1
        assert told[-1] == kept[-1] == words.eos_token_id
        assert [t for t in told if t in marks] == [t for t in kept if t in marks] == marks[:spans]
        parts = {}
        for token in told[:-1]:
            key = token if token in marks else key  # noqa: F821  # a target begins with a sentinel
            parts.setdefault(key, []).extend([] if token in marks else [token])
        whole = [t for token in kept[:-1] for t in parts.get(token, [token])]
        assert "".join(words.convert_ids_to_tokens(whole)) == text


def test_the_loss_is_the_models_own_times_the_targets_tokens(model, batch):
    model.eval()
    ids, mask, targets = fw.SpanCorruption().hide(model, batch)
    loss, units = fw.SpanCorruption().loss(model, batch)
    own = model(input_ids=ids, attention_mask=mask, labels=targets).loss
    assert units == (targets >= 0).sum()
    torch.testing.assert_close(loss / units, own, rtol=1e-5, atol=1e-5)


def test_rows_say_how_many_units_they_have(model, batch, words):
    rows = fw.SpanCorruption().encode_all(shaped(TEXTS), words, None)
    targets = fw.SpanCorruption().hide(model.train(), batch)[2]
    assert [row.units for row in rows] == (targets >= 0).sum(1).tolist()


def test_training_draws_anew_and_evaluation_does_not(model, batch):
    def targets():
        return fw.SpanCorruption().hide(model, batch)[2].tolist()

    model.eval()
    assert targets() == targets()
    model.train()
    torch.manual_seed(0)
    first, second = targets(), targets()
    torch.manual_seed(0)
    assert targets() == first != second


def test_a_model_learns_to_restore_a_text(model, words):
    rows = [{"text": "the wheel has turned for two hundred years"}] * 16
    task = fw.SpanCorruption()
    before = fw.evaluate(model, rows[:1], task, tokenizer=words)["loss"]
    fw.train(model, rows, task, method=fw.Full(), tokenizer=words, steps=60, lr=5e-3)
    assert fw.evaluate(model, rows[:1], task, tokenizer=words)["loss"] < before / 2


def test_bad_input_is_named(words, stories_tokenizer):
    with pytest.raises(fw.InputError, match="no sentinels"):
        fw.SpanCorruption().encode_all(shaped(TEXTS), stories_tokenizer, None)
    with pytest.raises(fw.InputError, match="no such spans"):
        fw.SpanCorruption(density=0)
    with pytest.raises(fw.InputError) as raised:
        fw.SpanCorruption().encode_all(shaped(["a", "tonight " * 60, "tonight"]), words, None)
    told = str(raised.value)
    assert "row:1" in told
    assert "row:2" in told
    assert "row:3" not in told
    assert "sentinels" in told
