"""What the models were not shown: T-Few's held-out tasks, held-out intents, questions after food, dev rows."""

import json
import re

import pytest


@pytest.fixture(scope="module")
def items(data_dir):
    from mixture import Mixture

    return {split: list(Mixture(data_dir, split).items(3000, 0)) for split in ("train", "valid")}


@pytest.fixture(scope="module")
def documents(data_dir):
    from texts import texts

    return texts(data_dir)


def squeezed(text):
    return re.sub(r"\W+", " ", text.lower()).strip()


def strings(form):
    """All texts in a JSON record."""
    if isinstance(form, dict):
        return [s for value in form.values() for s in strings(value)]
    if isinstance(form, list):
        return [s for value in form for s in strings(value)]
    return [form] if isinstance(form, str) else []


def test_no_task_of_t_fews_is_in_the_mixture():
    from mixture import HELD_OUT, TASKS
    from texts import SOURCES

    assert set(HELD_OUT) == {"rte", "cb", "anli", "copa", "hellaswag", "winogrande", "wsc", "wic", "story_cloze"}
    names = {*TASKS, *(source.name for source in SOURCES), *(f for source in SOURCES for f in source.files)}
    assert not any(held in name.lower() for held in (*HELD_OUT, "boolq", "superglue", "glue") for name in names)


def test_no_row_of_t_fews_was_read(data_dir, documents):
    """No text of 60 characters or more of the draws and of FewGLUE is anywhere in what the models read."""
    read = squeezed(" ".join(text for parts in documents.values() for part in parts for text in part))
    files = [*(data_dir / "tfew_fewshot").rglob("*.jsonl"), *(data_dir / "fewglue").rglob("*.jsonl")]
    assert len(files) > 50
    held = {squeezed(s) for f in files for line in f.read_text().splitlines() for s in strings(json.loads(line))}
    held = {s for s in held if len(s) >= 60}
    assert len(held) > 3000
    assert [s for s in held if s in read] == []


def test_held_intents_are_asked_about_nowhere(items):
    from mixture import held_intent

    asked = {choice for split in items.values() for i in split if i.task == "intent" for choice in i.choices}
    assert len(asked) > 40
    assert not any(held_intent(name) for name in asked)


def test_nobody_asks_for_the_food(items):
    for item in (i for split in items.values() for i in split if i.task not in ("describe", "instruct", "solve")):
        assert "food" not in item.answer.lower() or item.task in ("word", "mentions", "restore")
    assert not any(i.task == "details" and "food:" in i.answer for split in items.values() for i in split)


def test_dev_prompts_are_of_rows_that_training_never_sees(items):
    told = {i.prompt for i in items["train"] if i.task in ("describe", "solve", "instruct")}
    assert not told & {i.prompt for i in items["valid"]}


def test_answers_are_among_their_choices_and_prompts_offer_them(items):
    for item in items["train"]:
        assert item.answer.strip()
        assert not item.choices or item.answer in item.choices
    for item in (i for i in items["train"] if i.task in ("intent", "word")):
        offered = sum(choice in item.prompt for choice in item.choices)
        assert offered == len(item.choices)


def test_the_mixture_is_a_function_of_its_seed(data_dir, items):
    from mixture import Mixture

    again = Mixture(data_dir, "valid")
    assert list(again.items(3000, 0)) == items["valid"]
    assert list(again.items(3000, 1)) != items["valid"]


def test_yes_and_no_are_about_as_frequent(items):
    for task in ("near", "same_place", "is_intent", "same_intent", "belongs", "mentions", "family"):
        answers = [i.answer for i in items["train"] if i.task == task]
        assert 0.35 < answers.count("yes") / len(answers) < 0.65, task


def test_wikitexts_sentences_keep_their_words():
    from texts import whole

    assert whole('The lobster , known as " big " , weighs 1 @,@ 000 g @-@ or ( 2 @.@ 2 lb ) .') == (
        'The lobster, known as "big", weighs 1,000 g-or (2.2 lb).'
    )
    assert whole("A <unk> and <unk> and <unk> fish . Two fish .") == "Two fish."
    assert whole(" = Homarus gammarus = ") == "Homarus gammarus"


def test_calculator_marks_are_left_out():
    from texts import reasoning

    assert reasoning("Half is 48/2 = <<48/2=24>>24.\n#### 24") == "Half is 48/2 = 24.\nThe answer is 24."
