"""Chain of thought: where an answer is read, what counts as right, and rows that lack a rationale."""

import pytest

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.load import load
from featherweight.data.rows import examples
from featherweight.data.types import Example, Turn
from featherweight.tasks.reasoning import parsed


@pytest.mark.parametrize(
    ("text", "answer", "rationale"),
    [
        ("48/2 = 24\n#### 72", "72", "48/2 = 24"),
        ("one #### 5 or rather #### 6\nand more", "6", "one #### 5 or rather"),
        ("x\n####   $1,234,567.  ", "1234567", "x"),
        ("x #### 2.50", "2.50", "x"),
        ("x #### -3", "-3", "x"),
        ("x #### 1,2", "1,2", "x"),
        ("no mark, 72", "", "no mark, 72"),
        ("x ####", "", "x"),
        ("####\n7", "7", ""),
    ],
)
def test_the_answer_stands_behind_the_last_mark(text, answer, rationale):
    found = parsed(text)
    assert (found, found.rationale) == (answer, rationale)


def test_another_mark():
    assert parsed("so The answer is 5.", "The answer is") == "5"
    assert fw.ChainOfThought(mark="=>").to_dict() == {"type": "chainofthought", "mark": "=>"}


def test_numbers_are_compared_as_they_are():
    """SQuAD's normalization drops points and signs: there 2.5 is 25 and -3 is 3."""
    task = fw.ChainOfThought()
    made = [parsed(f"x #### {v}") for v in ("2.5", "-3", "Four", "7")]
    right = [parsed(f"y #### {v}") for v in ("25", "3", "four", "7")]
    assert task.score(made, right) == {"answer_match": 0.5}
    assert fw.CausalLM().score(made, right) == {"exact_match": 1.0}


def row(answer, where="f:1"):
    return Example(where, turns=(Turn("q\n", False), Turn(answer, True)))


def test_every_gsm8k_answer_is_a_number(data_dir):
    """The stated rule on all 8,792 rows; the answers as a second reading of the file has them."""
    import json

    for name, count in (("train", 7473), ("test", 1319)):
        file = data_dir / "gsm8k" / f"{name}.jsonl"
        data = load(file)
        rows = examples(data.train, data.shape)
        task = fw.ChainOfThought()
        assert not task.check(rows)
        known = [json.loads(line)["answer"].split("####")[1].strip() for line in file.read_text().splitlines()]
        found = [task.reference(e) for e in rows]
        assert len(found) == count
        assert [float(f) for f in found] == [float(k.replace(",", "")) for k in known]


def test_a_model_that_recites_is_right(stories, stories_tokenizer):
    """Generation replaced by the answer key: the text goes through predict, evaluate and the answer's form."""

    class Recites(type(fw.CausalLM())):
        def predict(self, model, batch, tokenizer):
            return ["because\n#### 7", "no mark 7"]

    from featherweight.tasks.reasoning import Thinking

    class Task(Thinking, Recites):
        mark = "####"

    task = Task()
    rows = [Example("f:1", turns=(Turn("p\n", False), Turn("why #### 7", True))),
            Example("f:2", turns=(Turn("q\n", False), Turn("why #### 7", True)))]  # fmt: skip
    scores = fw.evaluate(stories, rows, task, tokenizer=stories_tokenizer, metrics=("task", "exact"))
    assert (scores["answer_match"], scores["exact_match"]) == (0.5, 0.5)
    answers = fw.predict(stories, rows, task, tokenizer=stories_tokenizer)
    assert {"text": "7", "rationale": "because"} in answers
    assert {"text": "", "rationale": "no mark 7"} in answers


def test_bad_rows_are_all_named(stories_tokenizer):
    rows = [row("why #### 1"), row("#### 1", "f:2"), row("why 1", "f:3"), row("why ####", "f:4")]
    with pytest.raises(InputError) as error:
        fw.ChainOfThought().encode_all(rows, stories_tokenizer, None)
    said = str(error.value)
    assert "f:2: missing rationale" in said
    assert "f:3: no answer behind the mark" in said
    assert "f:4: no answer behind the mark" in said
    assert "f:1" not in said


def test_a_pool_without_rationales_is_refused(stories, stories_tokenizer):
    with pytest.raises(InputError, match="f:9: missing rationale"):
        fw.in_context(stories, [row("why #### 1")], [row("#### 2", "f:9")], 1, task=fw.ChainOfThought(),
                      tokenizer=stories_tokenizer)  # fmt: skip


def test_it_trains_like_any_text(stories, stories_tokenizer):
    from copy import deepcopy

    model = deepcopy(stories)
    fw.attach(model, fw.LoRA(rank=2))
    rows = [{"prompt": f"{i} and {i}?", "completion": f"twice {i} #### {2 * i}"} for i in range(8)]
    run = fw.train(model, rows, fw.ChainOfThought(), tokenizer=stories_tokenizer, steps=12, lr=1e-2, batch=8, log=1)
    losses = [line["loss"] for line in run.history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
