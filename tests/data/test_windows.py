"""Texts as windows: nothing is lost, nothing is longer than asked, cuts fall between words."""

import pytest

from featherweight.data.windows import windows

TEXTS = [
    "The cat sat on the mat. " * 9,
    "A short one.",
    "Rain fell all day,\nand the river rose by an inch an hour." * 4,
]


@pytest.mark.parametrize("length", [8, 16, 64])
def test_windows_hold_all_words_in_their_order(stories_tokenizer, length):
    made = windows(TEXTS, stories_tokenizer, length)
    assert "".join("".join(made).split()) == "".join("".join(TEXTS).split())
    assert all(len(stories_tokenizer(w)["input_ids"]) <= length + 1 for w in made)  # a cut may cost a token


def test_windows_are_full_and_cut_in_front_of_words(stories_tokenizer):
    made = windows(TEXTS, stories_tokenizer, 32)
    words = set(" ".join(TEXTS).split())
    assert all(set(w.split()) <= words for w in made)
    assert all(len(stories_tokenizer(w)["input_ids"]) > 16 for w in made[:-1])


def test_a_word_longer_than_a_window_is_cut(stories_tokenizer):
    made = windows(["x" * 200], stories_tokenizer, 16)
    assert "".join(made) == "x" * 200
    assert len(made) > 1


def test_no_text_no_window(stories_tokenizer):
    assert windows([], stories_tokenizer, 16) == windows([""], stories_tokenizer, 16) == []
