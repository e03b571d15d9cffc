"""The two small models: what their cards say of them is so, and they know more than how frequent words are."""

import json
from collections import Counter
from hashlib import sha256
from math import log

import pytest
import torch

import featherweight as fw

NAMES = ("tiny-bert", "tiny-t5")
AUTO = {"tiny-bert": "AutoModelForMaskedLM", "tiny-t5": "AutoModelForSeq2SeqLM"}
TASK = {"tiny-bert": fw.MaskedLM(), "tiny-t5": fw.SpanCorruption()}
TEXTS = (  # in the manner of the sources, and in none of them
    "The Wooden Spoon is a family friendly coffee shop near the river. It serves cheap Italian food, and its customer "
    "rating is average.",
    "My new card has still not arrived in the post. How long does it take until I can use it to pay?",
    "Ben has 12 apples. He gives 5 of them to his sister and buys twice as many as he has left. How many apples does "
    "he have now? He has 12 - 5 = 7 apples left.",
    "One day a little girl went to the park with her mom. She saw a big red ball and wanted to play with it. She was "
    "very happy.",
)

ANSWERS = (
    ("The Lamb and Flag is a pub by the riverside.\nWhat is the place called?", "The Lamb and Flag"),
    ("My transfer has not arrived yet!\nIs this about pin blocked or transfer timing?", "transfer timing"),
    ("Describe this restaurant in a sentence: name: The Bell, eatType: pub, area: city centre",
     "The Bell is a pub in the city centre."),
    ("Text: It is a coffee shop in the city centre.\nQuestion: city centre or riverside?\nAnswer:", "city centre"),
)  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(home, name):
    return home / name


@pytest.fixture(scope="module")
def loaded(folder, name):
    import transformers

    model = getattr(transformers, AUTO[name]).from_pretrained(folder)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def test_plain_transformers_loads_it_in_32_bits(loaded):
    model, tokenizer = loaded
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(tokenizer) <= model.get_input_embeddings().weight.shape[0]


def test_fw_loads_it_for_its_task(folder, name):
    model = fw.load_base(str(folder), TASK[name])
    assert fw.evaluate(model, [{"text": TEXTS[0]}], TASK[name])["loss"] > 0


def test_the_folder_is_small_and_is_what_its_card_says(folder):
    weights = folder / "model.safetensors"
    card, record = (folder / "README.md").read_text(), json.loads((folder / "record.json").read_text())
    assert weights.stat().st_size == record["bytes"] <= 8_000_000
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 9_000_000
    assert sha256(weights.read_bytes()).hexdigest() == record["sha256"]
    assert record["sha256"] in card


def test_the_card_names_every_source_with_its_licence(folder):
    from texts import SOURCES

    card = (folder / "README.md").read_text()
    assert SOURCES
    for source in SOURCES:
        assert f"| {source.name} | {source.licence} |" in card
    assert not any(word in source.licence for source in SOURCES for word in ("NC", "research", "unknown"))


def test_the_bert_knows_more_than_frequencies(home, data_dir):
    """Bits per hidden token of texts written here, against the unigram model of what was hidden in its own texts."""
    from shapes import load
    from store import counts, hidden, surprise

    model, tokenizer = load(home / "tiny-bert")
    task, rows = fw.MaskedLM(), [{"text": text} for text in TEXTS]
    bits = fw.evaluate(model.eval(), rows, task, tokenizer=tokenizer)["loss"] / log(2)
    baseline = surprise(hidden(task, model, rows, tokenizer), counts(task, model, tokenizer, data_dir))
    assert bits < baseline - 0.5


def test_the_t5_answers_better_than_frequencies(home, data_dir):
    """Bits per token of answers written here, against the unigram model of the mixture's answers."""
    from mixture import Mixture
    from shapes import load
    from store import surprise

    model, tokenizer = load(home / "tiny-t5")
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in ANSWERS]
    bits = fw.evaluate(model.eval(), rows, fw.Seq2Seq(), tokenizer=tokenizer)["loss"] / log(2)
    told = tokenizer([item.answer for item in Mixture(data_dir, "train").items(3000, 0)])["input_ids"]
    counted = Counter(i for ids in told for i in ids) + Counter(range(len(tokenizer)))
    answers = tokenizer([answer for _, answer in ANSWERS])["input_ids"]
    assert bits < surprise([i for ids in answers for i in ids], counted) - 2


@pytest.mark.parametrize(("task", "least"), [("area", 0.9), ("intent", 0.7), ("near", 0.6), ("same_place", 0.6)])
def test_the_t5_answers_prompts_above_chance(home, data_dir, task, least):
    """Dev rows: where a place is (two choices), what a message is about (two to four), two of yes or no."""
    from mixture import Mixture

    items = [i for i in Mixture(data_dir, "valid").items(1500, 3) if i.task == task]
    rows = [{"text": i.prompt, "choices": list(i.choices), "label": i.choices.index(i.answer)} for i in items[:60]]
    assert len(rows) > 25
    model = fw.load_base(str(home / "tiny-t5"), fw.Seq2SeqChoices())
    assert fw.evaluate(model, rows, fw.Seq2SeqChoices())["accuracy"] > least


def test_the_t5_learns_the_examples_summaries(home):
    """As examples/README.md trains it: dialogues that were not trained on are told with less surprise."""
    folder = home.parent / "examples" / "summarization"
    model, task = fw.load_base(str(home / "tiny-t5"), fw.Seq2Seq()), fw.Seq2Seq()
    before = fw.evaluate(model, folder / "test.jsonl", task)["loss"]
    fw.train(model, folder / "train.jsonl", task, method=fw.LoRA(targets="linear"), steps=20, lr=1e-3)
    assert fw.evaluate(model, folder / "test.jsonl", task)["loss"] < before - 0.1
