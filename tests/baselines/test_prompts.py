"""Prompts: what is shown, in which order, what does not fit, and that no row ever sees itself."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from support.choices import rows

import featherweight as fw
from featherweight.baselines.near import nearest, similarities
from featherweight.baselines.shots import spread
from featherweight.core.errors import InputError
from featherweight.data.types import Example, Turn

POOL = rows("a", "b", "c", "d", "e", "f")


def shown(prompts, pool=POOL):
    """The pool's rows in front of each row, in the order of the text."""
    return [
        [p.text for piece in e.text.split("\n\n")[:-1] for p in pool if piece.split()[0] == p.text] for e in prompts
    ]


def test_a_prompt_by_hand(llama):
    """Best first is next to the question last; the separator and the answers stand as they are."""
    made = fw.in_context(llama, rows("x", name="test"), POOL[:1], 1, instruction="think .")
    assert made[0].text == "think .\n\na bad\n\nx"
    assert (made[0].choices, made[0].label, made[0].where) == (("bad", "good"), 0, "test:1")
    other = fw.in_context(llama, rows("x", name="test"), POOL[:1], 1, separator=" | ")
    assert other[0].text == "a bad | x"
    assert fw.in_context(llama, rows("x"), POOL, 0)[0].text == "x"


def test_random_draws_differ_by_row_and_recur_by_seed(llama):
    test = rows(*"gh" * 5, answers="0" * 10)
    once, again = (fw.in_context(llama, test, POOL, 3, seed=1) for _ in range(2))
    assert once == again
    assert once.used == again.used
    assert len({tuple(u) for u in once.used}) > 5
    assert once.used != fw.in_context(llama, test, POOL, 3, seed=2).used
    assert all(len(set(u)) == 3 for u in once.used)
    counts = Counter(i for u in fw.in_context(llama, test * 60, POOL, 3).used for i in u)
    assert all(abs(counts[i] / 600 - 0.5) < 0.08 for i in range(6))  # 4 standard deviations


def test_balanced_takes_of_each_answer_in_turn(llama):
    lopsided = rows(*"abcdef", answers="000001")
    for used in fw.in_context(llama, rows(*"gh"), lopsided, 2, select="balanced").used:
        assert 5 in used
    for used in fw.in_context(llama, rows(*"gh"), lopsided, 4, select="balanced").used:
        assert sorted(u == 5 for u in used) == [False] * 3 + [True]
    from random import Random

    for k in range(9):
        found = spread(list("aaabbbccc"), k, {0}, Random(k))
        counts = Counter("aaabbbccc"[i] for i in found)
        assert len(found) == k == len(set(found))
        assert 0 not in found
        assert max(counts.values(), default=0) - min((counts[a] for a in "abc"), default=0) <= (1 if k < 7 else 2)


def test_nearest_equals_brute_force(bert, llama):
    from featherweight.tasks import Embedding

    pool, test = rows("a b", "c d", "e f", "a d", "g h", "b c"), rows("a c", "g f", name="test")
    vectors = {}
    for e in (*pool, *test):
        ids = bert.tokenizer(e.text, return_tensors="pt")
        vectors[e.text] = Embedding().embed(bert, ids["input_ids"], ids["attention_mask"])[0].detach().numpy()
    for row, used in zip(test, fw.in_context(llama, test, pool, 3, select="nearest", embedder=bert).used, strict=True):
        wanted = sorted(range(6), key=lambda i: -float(vectors[row.text] @ vectors[pool[i].text]))[:3]
        assert used == wanted


def test_likeness_of_words_by_hand():
    """idf of the pool: ln((1 + 3) / (1 + df)) + 1; "a" is in two of three, "b" and "c" in one."""
    a, b = np.log(4 / 3) + 1, np.log(4 / 2) + 1
    found = similarities(["a b", "z"], ["a", "a b", "c"], "words")
    long = np.hypot(a, b)
    assert found[0] == pytest.approx([a / long, 1.0, 0.0])
    assert found[1] == pytest.approx([0, 0, 0])
    assert nearest(["a b"], ["a", "a b", "c"], 2, "words", [{1}]) == [[0, 2]]


def test_the_order_is_what_was_asked_for(llama):
    test = rows("b", name="test")
    pool = rows("a b c", "b c", "c d", "b")  # likeness to b: 3 (the row itself: banned), 1, 0, 2
    by = {"select": "nearest", "embedder": "words"}
    last = fw.in_context(llama, test, pool, 3, **by)
    assert last.used == [[1, 0, 2]]
    assert last[0].text == "c d bad\n\na b c bad\n\nb c good\n\nb"
    assert fw.in_context(llama, test, pool, 3, order="first", **by)[0].text == "b c good\n\na b c bad\n\nc d bad\n\nb"
    shuffled = {fw.in_context(llama, test, pool, 3, order="shuffled", seed=s, **by)[0].text for s in range(40)}
    assert len(shuffled) == 6


@pytest.mark.parametrize("select", ["random", "balanced", "nearest"])
def test_no_row_sees_itself_or_its_twin(llama, select):
    """The pool holds the rows to answer, and one of them twice under another name."""
    pool = [*rows(*"abcdef"), *rows("a", answers="1", name="other")]
    made = fw.in_context(llama, pool, pool, 5, select=select, embedder="words")
    for row, used in zip(pool, made.used, strict=True):
        assert all(pool[i].text != row.text for i in used)
        assert len(used) == 5


@pytest.mark.parametrize("select", ["random", "balanced", "nearest"])
def test_answers_of_the_rows_asked_decide_nothing(llama, select):
    from dataclasses import replace

    test = rows(*"ghgh", answers="0101")
    swapped = [replace(e, label=1 - e.label) for e in test]
    bare = [replace(e, label=None) for e in test]
    made = [fw.in_context(llama, t, POOL, 3, select=select, embedder="words") for t in (test, swapped, bare)]
    assert made[0].used == made[1].used == made[2].used
    assert [e.text for e in made[0]] == [e.text for e in made[1]] == [e.text for e in made[2]]


def test_what_does_not_fit_is_dropped_whole(llama):
    """A word a token: a shot is 5 words and its answer, the question 1, the choice and the end of text 2."""
    pool = rows(*(" ".join(4 * [w] + [v]) for w, v in pairwise("abcdefgh")))
    for length, fit in ((40, 6), (39, 6), (38, 5), (9, 1)):
        made = fw.in_context(llama, rows("x", "y"), pool, 7, length=length)
        assert [len(u) for u in made.used] == [fit, fit], length
        assert made.dropped == [7 - fit] * 2
        assert all(not r.truncated for r in fw.Choices().encode_all(made, llama.tokenizer, length))
        whole = fw.in_context(llama, rows("x", "y"), pool, 7, length=40)
        assert made.used[0] == whole.used[0][:fit], "the worst are given up first"
    assert "dropped in 2 rows" in repr(made)
    with pytest.raises(InputError, match="no example fits in front of any row"):
        fw.in_context(llama, rows("x", "y"), pool, 7, length=8)


def test_texts_need_room_for_the_answer_and_for_what_is_written(llama):
    """Questions are cut to leave room for `max_new_tokens`; shots count against that."""

    def asked(text, answer, name):
        return Example(name, turns=(Turn(text + "\n", False), Turn(answer, True)))

    pool, test = [asked("a b c", "yes no", "p:1"), asked("d e f", "no yes", "p:2")], [asked("x", "yes", "t:1")]
    task = fw.CausalLM(max_new_tokens=20)
    made = fw.in_context(llama, test, pool, 2, task=task)  # 20 positions: 2 shots of 5, the question 1
    assert [len(u) for u in made.used] == [2]
    text = "".join(t.text for t in made[0].turns)
    assert sorted(text.split("\n\n")) == ["a b c\nyes no", "d e f\nno yes", "x\nyes"]
    assert [t.trained for t in made[0].turns] == [False, False, True]
    assert [len(u) for u in fw.in_context(llama, test, pool, 2, task=task, length=10).used] == [1]
    scores = fw.evaluate(llama, made, task, metrics=("exact",))
    assert scores.rows == 1


def test_conversations_take_examples_as_earlier_turns():
    from featherweight.baselines.shots import Layout

    def chat(question, answer):
        return Example("c:1", messages=({"role": "system", "content": "S"}, {"role": "user", "content": question},
                                        {"role": "assistant", "content": answer}))  # fmt: skip

    made = Layout(instruction="I", cue="think").render(chat("q", "r"), [chat("near", "1"), chat("far", "2")], 0)
    assert [(m["role"], m["content"]) for m in made.messages] == [
        ("system", "I\n\nS"), ("user", "far\nthink"), ("assistant", "2"), ("user", "near\nthink"), ("assistant", "1"),
        ("user", "q\nthink"), ("assistant", "r"),
    ]  # fmt: skip


def test_a_cue_opens_every_answer(llama):
    pool = [Example("p:1", turns=(Turn("a\n", False), Turn("b # 1", True)))]
    test = [Example("t:1", turns=(Turn("x\n", False), Turn("y # 2", True)))]
    made = fw.in_context(llama, test, pool, 1, cue="think", task=fw.CausalLM(max_new_tokens=4))
    assert "".join(t.text for t in made[0].turns) == "a\nthink\nb # 1\n\nx\nthink\ny # 2"
    assert [t.text for t in made[0].turns if t.trained] == ["y # 2"]
    assert fw.in_context(llama, rows("x"), rows("a"), 1, cue="think")[0].text == "a think bad\n\nx think"


def test_an_encoder_decoder_takes_prompts_without_end(t5):
    made = fw.in_context(t5, rows("x"), POOL, 5, task=fw.Seq2SeqChoices())
    assert len(made.used[0]) == 5
    assert 0 <= fw.evaluate(t5, made, fw.Seq2SeqChoices())["accuracy"] <= 1


def test_passages_stand_before_the_question(llama):
    corpus = ["a b", "c d", "b e", "x . y", "a b"]
    made = fw.with_passages(llama, rows("b", "x", name="t"), corpus, 2, lead="think")
    assert made.used == [[0, 2], [3, 0]], "equals stand in the corpus's order; a passage counts once"
    assert made[0].text == "think\n\na b\n\nb e\n\nb"
    both = fw.in_context(llama, made, rows("c"), 1)
    assert both[0].text == "c bad\n\nthink\n\na b\n\nb e\n\nb"
    tight = fw.with_passages(llama, rows("b"), corpus, 2, length=6)
    assert (tight[0].text, tight.dropped) == ("a b\n\nb", [1])


def test_no_passage_is_the_row_itself(llama):
    """Neither its question nor its question with its answer, however the white space falls."""
    corpus = ["a b", "a  b\ngood", "a b bad", "c"]
    made = fw.with_passages(llama, rows("a b", answers="1"), corpus, 2)
    assert made.used == [[2, 3]]


def test_passages_of_a_file(llama, tmp_path):
    file = tmp_path / "passages.txt"
    file.write_text("a b\n\nc d\n", encoding="utf-8")
    assert fw.with_passages(llama, rows("d"), file, 1)[0].text == "c d\n\nd"
    with pytest.raises(InputError, match="no such number of passages"):
        fw.with_passages(llama, rows("d"), file, 3)
    with pytest.raises(InputError, match="no passages"):
        fw.with_passages(llama, rows("d"), [" "], 1)


def test_labels_become_choices():
    made = fw.as_choices([Example("f:1", "a ", label="not_bad"), Example("f:2", "b", "c", label="bad")])
    assert (made[0].text, made[0].choices, made[0].label) == ("a\nLabel:", ("bad", "not bad"), 1)
    assert (made[1].text, made[1].pair, made[1].label) == ("b\nc\nLabel:", None, 0)
    said = fw.as_choices([Example("f:1", "a", label="1")], ["0", "1"], "Say {text} !", {"1": "good"})
    assert (said[0].text, said[0].choices, said[0].label) == ("Say a !", ("0", "good"), 1)


BAD = {
    "more shots than the pool": (lambda m: fw.in_context(m, rows("x"), POOL, 7), "more shots than the pool has rows"),
    "itself alone": (lambda m: fw.in_context(m, rows("a"), rows("a"), 1), "more shots than the pool has rows"),
    "fewer than none": (lambda m: fw.in_context(m, rows("x"), POOL, -1), "no such number of shots"),
    "no embedder": (lambda m: fw.in_context(m, rows("x"), POOL, 1, select="nearest"), 'embedder="words"'),
    "misspelt choice": (lambda m: fw.in_context(m, rows("x"), POOL, 1, select="nearst"), "did you mean 'nearest'"),
    "misspelt order": (lambda m: fw.in_context(m, rows("x"), POOL, 1, order="lst"), "did you mean 'last'"),
    "no answer": (lambda m: fw.in_context(m, rows("x"), [Example("p:9", "a", choices=("b",))], 1), "p:9: no answer"),
    "unlike forms": (
        lambda m: fw.in_context(m, rows("x"), [Example("p:9", turns=(Turn("a", False), Turn("b", True)))], 1),
        "p:9: rows of unlike forms",
    ),
    "labels": (lambda m: fw.in_context(m, [Example("p:9", "a", label="b")], POOL, 1), "fw.as_choices"),
    "a head": (
        lambda m: fw.in_context(m, rows("x"), POOL, 1, select="nearest", embedder=m), "no states to embed by",
    ),
    "words alike": (lambda m: fw.as_choices([Example("f:1", "a", label="x y"), Example("f:2", "a", label="x_y")]),
                    "labels that read alike"),
    "text left out": (lambda m: fw.as_choices([Example("f:1", "a", label="b")], ["b", "c"], "hello"), "{text} in it"),
    "unknown label": (lambda m: fw.as_choices([Example("f:1", "a", label="d")], ["b", "c"]), "f:1"),
    "unknown word": (lambda m: fw.as_choices([Example("f", "a", label="b")], ["b", "c"], words={"e": "f"}), "words.e"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(llama, name):
    call, said = BAD[name]
    with pytest.raises(InputError) as error:
        call(llama)
    assert said in str(error.value)
