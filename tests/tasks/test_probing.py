"""Probing: ids of templates by hand, ranks by brute force, P-tuning's tokens in the template, our own relations."""

from pathlib import Path

import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.collate import collate
from featherweight.data.facts import relation_templates
from featherweight.data.load import load
from featherweight.data.probes import Probe
from featherweight.data.rows import examples
from featherweight.data.types import Example

FACTS = Path(__file__).parents[2] / "examples" / "probing"
PERU = Example("f:1", "Peru", None, "Lima")
OBJECTS = ("America", "Europe", "Asia", "Africa", "tree", "flower", "fish", "bird", "insect")
CAPITAL = "The capital of [X] is [Y] ."


def words_tokenizer(texts):
    """One token per word of these texts, and BERT's special ones; id 5 is in no text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, "[unused1]", *sorted({word for text in texts for word in text.split()})]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


@pytest.fixture(scope="module")
def masked(facts):
    """A small masked language model that has read our relations in their written templates, the test facts too: what
    P-tuning is to find without those words."""
    from transformers import BertConfig, BertForMaskedLM

    templates = relation_templates(FACTS / "relations.jsonl")
    every = [e for part in facts for e in part if e.label in OBJECTS]
    tokenizer = words_tokenizer([*templates.values(), *(f"{e.text} {e.label}" for part in facts for e in part[:-1])])
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape, **dropout))
    model.tokenizer = tokenizer
    task = fw.Probing(templates=templates)
    batch = collate(task.encode_all(every, tokenizer, None), 0).tensors
    rule = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(120):
        rule.zero_grad()
        loss, units = task.loss(model, batch)
        (loss / units).backward()
        rule.step()
    return model.eval()


@pytest.fixture(scope="module")
def facts():
    data = load(FACTS)
    return examples(data.train, data.shape), examples(data.test, data.shape)


def shown(tokenizer, task, words=CAPITAL, fact=PERU):
    (item,) = type(task)(template=words, pseudo=task.pseudo).encode_all([fact], tokenizer, None)
    return tokenizer.convert_ids_to_tokens(item.input_ids), item


def test_a_masked_template_by_hand(minilm_tokenizer):
    tokens, item = shown(minilm_tokenizer, fw.Probing())
    assert tokens == ["[CLS]", "the", "capital", "of", "peru", "is", "[MASK]", ".", "[SEP]"]
    assert item.more == {"hole": [6]}
    assert [i for i in item.labels if i >= 0] == minilm_tokenizer.convert_tokens_to_ids(["lima"])
    assert item.labels[6] >= 0
    tokens, item = shown(minilm_tokenizer, fw.Probing(pseudo=2), "[P][P] [Y] [P] [X] [P]")
    assert tokens == ["[CLS]", *["[unused1]"] * 2, "[MASK]", "[unused1]", "peru", "[unused1]", "[SEP]"]
    assert item.more == {"hole": [3]}


def test_a_decoders_template_by_hand(stories_tokenizer):
    """What follows the object is not read; the object is predicted at the last token."""
    tokens, item = shown(stories_tokenizer, fw.CausalProbing(pseudo=4), "[P] [X] [P][P] saw [Y] [P] .",
                         Example("f:1", "Lily", None, "a"))  # fmt: skip
    own = stories_tokenizer.convert_ids_to_tokens(stories_tokenizer("Lily saw")["input_ids"])
    assert [t for t in tokens if t != "<0x01>"] == own
    assert tokens[1] == tokens[-2] == tokens[-3] == "<0x01>" or tokens.count("<0x01>") == 3
    assert item.more == {"hole": [len(tokens) - 1]}
    assert stories_tokenizer.convert_ids_to_tokens([item.labels[-1]]) == ["▁a"]


def test_words_are_the_tokens_that_they_are_in_their_place(stories_tokenizer, minilm_tokenizer):
    """Pieces around a mark, joined, are the text without the mark."""
    for tokenizer in (stories_tokenizer, minilm_tokenizer):
        probe = Probe(tokenizer, tokenizer.mask_token_id, 4)
        item = probe.encoded(PERU, "The [P] capital of [X] [P] is [P] now [Y]", None)
        kept = [i for i in item.input_ids if i not in (4, tokenizer.mask_token_id)]
        assert kept == tokenizer("The capital of Peru is now")["input_ids"]


def test_ranks_and_loss_by_brute_force(masked, facts):
    """The tokenizer does not know the last fact's object: it is left out."""
    tokenizer = masked.tokenizer
    task = fw.Probing(templates=relation_templates(FACTS / "relations.jsonl"))
    scores = fw.evaluate(masked, facts[1], task, batch=7)
    ranks, losses = [], []
    for e in facts[1]:
        words = task.templates[e.pair].replace("[X]", e.text).replace("[Y]", "[MASK]")
        ids = tokenizer(words, return_tensors="pt")["input_ids"]
        (gold,) = tokenizer(e.label, add_special_tokens=False)["input_ids"]
        if gold == tokenizer.unk_token_id:
            continue
        with torch.no_grad():
            logits = masked(input_ids=ids).logits[0, ids[0].tolist().index(tokenizer.mask_token_id)]
        ranks.append(1 + sum(1 for v in logits.tolist() if v > float(logits[gold])))
        losses.append(-float(logits.log_softmax(0)[gold]))
    assert scores["left_out"] == len(facts[1]) - len(ranks) == 1
    assert scores["p@1"] == sum(r == 1 for r in ranks) / len(ranks)
    assert scores["p@10"] == sum(r <= 10 for r in ranks) / len(ranks)
    assert scores["mrr"] == pytest.approx(sum(1 / r for r in ranks) / len(ranks))
    assert scores.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_training_loss_and_examined_loss_are_one(masked, facts):
    task = fw.Probing(template=CAPITAL)
    batch = collate(task.encode_all(facts[0][:9], masked.tokenizer, None), 0).tensors
    with torch.no_grad():
        loss, units = task.loss(masked, batch)
        other, same, made = task.examine(masked, batch, masked.tokenizer)
    assert float(loss) == pytest.approx(float(other), abs=1e-3)
    assert int(units) == int(same) == 9
    assert len(made) == 9


@pytest.mark.parametrize("words", ["[P][P] [X] [P] [Y]", "[P] [Y] [P] [P] [X]"])
def test_p_tuning_finds_what_other_words_do_not(masked, facts, words):
    """The model knows its facts in the words that it has read them in. Untrained virtual tokens find few of the
    held-out ones, trained ones rank them higher, and the written template is as before."""
    train, test = ([e for e in part if e.pair == "kind" and e.label in OBJECTS] for part in facts)
    task, written = fw.Probing(template=words, pseudo=5), fw.Probing(template="The [X] is a kind of [Y] .")
    known, before = fw.evaluate(masked, test, written), fw.evaluate(masked, test, task)
    rows = [{"subject": e.text, "object": e.label} for e in train]
    fw.train(masked, rows, task, method=fw.PTuning(template=(2, 1), pseudo=5), name="p", steps=40, batch=8, lr=2e-2)
    after = fw.evaluate(masked, test, task)
    same = fw.evaluate(masked, test, written)
    fw.detach(masked, "p")
    assert after.loss < before.loss - 0.2
    assert after["mrr"] > before["mrr"]
    assert known["p@1"] > before["p@1"]
    assert same == known


def test_what_cannot_be_asked_is_said(masked, minilm_tokenizer, stories_tokenizer):
    rows = [PERU, Example("f:2", "cat", "P99", "kitten"), Example("f:3", "cat", "no hole for [X]", "kitten")]
    with pytest.raises(InputError) as error:
        fw.Probing(templates={"P9": CAPITAL}).fit(rows)
    assert [line.split(";")[0] for line in str(error.value).splitlines()] == [
        "f:1: no template for this fact", "f:2: no template for this fact", "f:3: not a template"]  # fmt: skip
    assert "P9" in str(error.value)
    with pytest.raises(InputError, match="a decoder cannot see what stands behind the object"):
        fw.CausalProbing(template="[Y] is the capital of [X]").fit([PERU])
    with pytest.raises(InputError, match="virtual tokens without a token that stands for them"):
        fw.Probing(template="[P] [X] [Y]").fit([PERU])
    with pytest.raises(InputError, match="f:1: a fact longer than the model"):
        fw.Probing(template=CAPITAL).encode_all([PERU], minilm_tokenizer, 5)
    with pytest.raises(InputError, match="no mask token"):
        fw.Probing(template=CAPITAL).encode_all([PERU], stories_tokenizer, None)
    with pytest.raises(InputError, match="no row has a token with loss"):
        fw.evaluate(masked, [Example("f:1", "Peru", None, "two words")], fw.Probing(template=CAPITAL))
    rows = [{"subject": "Peru", "object": "two words"}]
    for verb in (fw.train, fw.evaluate):
        with pytest.raises(InputError, match="expected an object that the tokenizer has as one token"):
            verb(masked, rows, fw.Probing(template=CAPITAL))
    with pytest.raises(InputError, match="no fact can be asked for"):
        fw.Probing().score([(["a"], [1.0], None)], ["b"])


def test_an_answer_is_the_likeliest_word(masked):
    (found,) = fw.predict(masked, [{"subject": "Peru", "template": CAPITAL}], fw.Probing())
    assert found["text"] == found["tokens"][0]
    assert len(found["tokens"]) == len(found["probabilities"]) == 10
    assert found["probabilities"] == sorted(found["probabilities"], reverse=True)


def test_our_relations_are_what_they_say():
    """Six relations, 25 facts each at least, no subject twice, every object of the test rows possible."""
    rows = [row.fields for part in (load(FACTS).train, load(FACTS).test) for row in part]
    names = relation_templates(FACTS / "relations.jsonl")
    for name in names:
        mine = [r for r in rows if r["relation"] == name]
        assert len(mine) >= 25
        assert len({r["sub_label"] for r in mine}) == len(mine)
    assert {r["relation"] for r in rows} == set(names)
