"""Masked language models rank choices: against one call per choice and token, without pads; PET's order; training."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.collate import collate
from featherweight.data.rows import examples
from featherweight.data.types import Example
from featherweight.tasks.masked_choices import at_slots

ROWS = [
    Example("f:1", "Lovely food. It was {{ mask }} there.", label=1, choices=("bad", "wonderful", "not bad at all")),
    Example("f:2", "{{mask}}, said the man.", label=0, choices=("Yes", "no")),
    Example("f:3", "The bank lost my card and my money", label=3,
            choices=("a theft", "weather", "unbelievably bad service", "card loss")),
]  # fmt: skip
SIZE = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip


def build(arch):
    import transformers as tf

    torch.manual_seed(0)
    if arch == "distilbert":
        config = tf.DistilBertConfig(vocab_size=30522, dim=32, n_layers=2, n_heads=4, hidden_dim=48,
                                     max_position_embeddings=64, pad_token_id=0)  # fmt: skip
        model = tf.DistilBertForMaskedLM(config)
    else:
        name = {"bert": "Bert", "roberta": "Roberta", "albert": "Albert", "deberta-v2": "DebertaV2",
                "electra": "Electra", "modernbert": "ModernBert"}[arch]  # fmt: skip
        more = {"embedding_size": 16} if arch == "albert" else {}
        model = getattr(tf, f"{name}ForMaskedLM")(getattr(tf, f"{name}Config")(**SIZE, **more))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def bert():
    return build("bert")


def one_call(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def whole_words(example, tokenizer, masks):
    """[CLS] before [MASK]… after [SEP], written out by hand."""
    text = example.text.replace("{{mask}}", "{{ mask }}")
    text = text if "{{ mask }}" in text else text + " {{ mask }}."
    before, after = (tokenizer.tokenize(part) for part in text.split("{{ mask }}"))
    tokens = ["[CLS]", *before, *["[MASK]"] * masks, *after, "[SEP]"]
    return tokenizer.convert_tokens_to_ids(tokens), 1 + len(before)


def by_steps(model, example, choice, tokenizer):
    """PET's rule as it is written, choice by choice."""
    left = dict(enumerate(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(choice))))
    ids, at = whole_words(example, tokenizer, len(left))
    found = {}
    while left:
        log_p = one_call(model, ids)
        i = max(left, key=lambda i: float(log_p[at + i, left[i]]))
        found[i] = float(log_p[at + i, left[i]])
        ids[at + i] = left.pop(i)
    return [found[i] for i in sorted(found)]


def at_once(model, example, choice, tokenizer):
    most = max(len(tokenizer.tokenize(c)) for c in example.choices)
    ids, at = whole_words(example, tokenizer, most)
    log_p = one_call(model, ids)
    own = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(choice))
    return [float(log_p[at + i, token]) for i, token in enumerate(own)]


@pytest.mark.parametrize("stepwise", [True, False])
@pytest.mark.parametrize("method", [None, fw.LoRA(rank=2), fw.Prompt(tokens=3), fw.Prefix(tokens=2)], ids=repr)
def test_scores_are_those_of_every_choice_alone(stepwise, method, bert, minilm_tokenizer):
    model, task = deepcopy(bert), fw.MaskedChoices(stepwise=stepwise)
    if method is not None:
        fw.attach(model, method, "a")
        for p in model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, 0.2, 0.2)
    batch = collate(task.encode_all(ROWS, minilm_tokenizer, None), 0).tensors
    model = model.double().eval()
    with torch.no_grad():
        log_p, _, real = task.tokens(model, batch)
        answers = task.answers(model, batch, log_p)
    assert real.any(2).sum(1).tolist() == [3, 2, 4]
    lengths = real.sum(2)
    assert lengths.max() >= 3
    for i, e in enumerate(ROWS):
        for j, choice in enumerate(e.choices):
            ours = (answers if stepwise else log_p)[i, j, : lengths[i, j]].tolist()
            brute = (by_steps if stepwise else at_once)(model, e, choice, minilm_tokenizer)
            assert ours == pytest.approx(brute, abs=1e-12, rel=1e-12)
    means = task.scores(answers, real).softmax(1)
    for found, row in zip(task.predict(model, batch, None), means.tolist(), strict=True):
        assert found == pytest.approx(row[: len(found)])


@pytest.mark.parametrize("arch", ["bert", "roberta", "distilbert", "albert", "deberta-v2", "electra", "modernbert"])
def test_the_head_computes_the_slots_alone_and_the_same(arch):
    model = build(arch)
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    mask, slots = torch.ones_like(ids), torch.tensor([[2, 3, -100], [4, 5, 6]])
    mask[0, 7:], ids[0, 7:] = 0, 0
    with torch.no_grad():
        wanted, found = model(input_ids=ids, attention_mask=mask).logits, at_slots(model, ids, mask, slots)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
        assert (found[i, j] - wanted[i, slots[i, j]]).abs().max() < 1e-5


def test_losses_of_choices_of_one_token_are_those_of_the_papers(bert, minilm_tokenizer):
    """L_LN is PET's cross-entropy of a softmax over the words' logits; L_LM + L_UL are ADAPET's decoupled ones."""
    row = Example("f:1", "It was {{ mask }}.", label=1, choices=("good", "bad", "ugly"))
    ids = minilm_tokenizer.convert_tokens_to_ids(list(row.choices))
    task = fw.MaskedChoices()
    batch = collate(task.encode_all([row], minilm_tokenizer, None), 0).tensors
    with torch.no_grad():
        at = batch["slots"][0, 0]
        logits = bert(input_ids=batch["input_ids"]).logits[0, at]
        q = logits.softmax(-1)[ids]
        pet = -logits[ids].log_softmax(-1)[1]
        adapet = -q[1].log() - (torch.log1p(-q[0]) + torch.log1p(-q[2])) / 2  # T-Few's mean over the wrong ones' tokens
        names = ("language", "unlikelihood", "normalized")
        only = {n: replace(task, **{name: float(name == n) for name in names}) for n in names}
        found = {n: float(t.loss(bert, batch)[0]) for n, t in only.items()}
        whole = float(task.loss(bert, batch)[0])
    assert found["normalized"] == pytest.approx(float(pet), abs=1e-5)
    assert found["language"] + found["unlikelihood"] == pytest.approx(float(adapet), abs=1e-5)
    assert whole == pytest.approx(float(pet + adapet), abs=1e-5)


def test_training_evaluating_and_predicting(bert, minilm_tokenizer, tmp_path):
    rows = [{"prompt": f"{('dog', 'cat')[i % 2]} {i} is {{{{ mask }}}} .", "choices": ["very happy", "sad"],
             "answer": 1 - i % 2} for i in range(12)]  # fmt: skip
    task, model = fw.MaskedChoices(language=0, unlikelihood=0), deepcopy(bert)
    model.apply(model._init_weights)
    before = fw.evaluate(model, rows, task, tokenizer=minilm_tokenizer)
    fw.train(model, rows, task, method=fw.Full(), tokenizer=minilm_tokenizer, output=tmp_path / "out", lr=1e-2,
             steps=25, batch=6)  # fmt: skip
    after = fw.evaluate(model, rows, task, tokenizer=minilm_tokenizer)
    assert after["accuracy"] == 1.0 > before["accuracy"]
    assert after.loss < before.loss / 2
    asked = [{k: v for k, v in row.items() if k != "answer"} for row in rows[:4]]
    answers = fw.predict(model, asked, task, tokenizer=minilm_tokenizer)
    assert [a["label"] for a in answers] == [1, 0, 1, 0]


def test_a_space_before_the_slot_belongs_to_the_choice():
    """Byte-level BPE has another token for a word behind a space."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<mask>", "<pad>", "It", "Ġwas", "Ġgreat", "great", "Ġbad", "bad", ".", "Ġ"]
    letters = sorted({c for w in words[4:] for c in w} - set(words))
    vocab = {w: i for i, w in enumerate([*words, *letters])}
    merges = [("I", "t"), ("Ġ", "w"), ("Ġw", "a"), ("Ġwa", "s"), ("g", "r"), ("gr", "e"), ("gre", "a"), ("grea", "t"),
              ("Ġ", "great"), ("b", "a"), ("ba", "d"), ("Ġ", "bad")]  # fmt: skip
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    made = Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                        mask_token="<mask>")  # fmt: skip
    for text, wanted in (("It was {{ mask }}.", "Ġgreat"), ("It was({{ mask }}.", "great"), ("{{ mask }}.", "great")):
        row = fw.MaskedChoices().encode(Example("f", text, label=0, choices=("great", "bad")), tokenizer, None)
        assert row.choices[0] == [vocab[wanted]], text
        assert [row.input_ids[i] for i in row.more["slots"]] == [vocab["<mask>"]]


def test_texts_are_cut_around_the_slot(minilm_tokenizer):
    t = minilm_tokenizer
    row = Example("f:1", "one two three four {{ mask }} five six", label=0, choices=("a cat", "a big dog"))
    for length, wanted in ((11, "one two three four "), (9, "three four "), (7, "")):
        made = fw.MaskedChoices().encode(row, t, length)
        assert t.decode(made.input_ids) == f"[CLS] {wanted}[MASK] [MASK] [MASK] five six [SEP]"
        assert (len(made.input_ids), made.truncated) == (length, 11 - length)
        assert [made.input_ids[i] for i in made.more["slots"]] == [t.mask_token_id] * 3
    made = fw.MaskedChoices().encode(row, t, 6)
    assert t.decode(made.input_ids) == "[CLS] [MASK] [MASK] [MASK] five [SEP]"
    with pytest.raises(InputError, match=r"f:1: a choice is longer than there are slots for.*at most 2.*3"):
        fw.MaskedChoices().encode(row, t, 4)


def test_bad_input_is_named(bert, stories, stories_tokenizer, minilm_tokenizer):
    two = Example("f:7", "{{ mask }} or [MASK]", label=0, choices=("a", "b"))
    with pytest.raises(InputError, match=r"f:7: a text with several slots; expected one \{\{ mask \}\}; got 2"):
        fw.MaskedChoices().encode(two, minilm_tokenizer, None)
    with pytest.raises(InputError, match="the tokenizer has no mask token"):
        fw.MaskedChoices().encode(ROWS[0], stories_tokenizer, None)
    with pytest.raises(InputError, match="f:1: a text with a slot is for a masked language model"):
        fw.Choices().encode(ROWS[0], stories_tokenizer, None)
    with pytest.raises(InputError, match=r"another kind of model.*take MaskedChoices"):
        fw.evaluate(bert, [replace(e, text="x") for e in ROWS], fw.Choices(end=False), tokenizer=minilm_tokenizer)
    with pytest.raises(InputError, match=r"another kind of model.*take Choices"):
        fw.MaskedChoices().fits(stories)
    with pytest.raises(InputError, match="no such pattern"):
        fw.MaskedChoices(pattern="{{ text }}")
    with pytest.raises(InputError, match="no end of text"):
        fw.MaskedChoices(end=True)


def test_a_prompt_template_has_the_slot(minilm_tokenizer, tmp_path):
    """`{{ mask }}` in a Jinja template; the task is the masked model's own default for choices."""
    from featherweight.tasks.pick import task_for

    words = '{%- set choices = ["bad", "good"] -%} {{ text }} All in all it was {{ mask }}.'
    (tmp_path / "verdict.jinja").write_text(words)
    data = fw.prompted([{"text": "It rained.", "label": 1}], tmp_path)
    (row,) = examples(data.train, data.shape)
    assert row.text == "It rained. All in all it was {{ mask }}."
    made = fw.MaskedChoices().encode(row, minilm_tokenizer, None)
    assert minilm_tokenizer.decode(made.input_ids) == "[CLS] it rained. all in all it was [MASK]. [SEP]"
    assert task_for(data.shape, build("bert").config) == fw.Choices()  # a config in memory names no architecture
    config = build("bert").config
    config.architectures = ["BertForMaskedLM"]
    assert task_for(data.shape, config) == fw.MaskedChoices()


def test_a_pattern_of_ones_own(minilm_tokenizer):
    row = Example("f:1", "it rained", label=0, choices=("bad", "good"))
    made = fw.MaskedChoices(pattern="A {{mask}} day: {{text}}!").encode(row, minilm_tokenizer, None)
    assert minilm_tokenizer.decode(made.input_ids) == "[CLS] a [MASK] day : it rained! [SEP]"
