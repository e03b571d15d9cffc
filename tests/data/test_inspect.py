import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.data.encode import encode_lm_all
from featherweight.data.inspect import inspect
from featherweight.data.load import Data, load
from featherweight.data.near import near_duplicates, numbered, words
from featherweight.data.show import show
from featherweight.data.types import Rows


class Lm:
    """The part of a task that a report asks for."""

    def encode_all(self, examples, tokenizer, length):
        return encode_lm_all(examples, tokenizer, length)


def test_case_punctuation_and_one_word():
    texts = [
        "Where is my parcel now?",
        "where is my parcel, now",
        "Where is my package now?",
        "I want a refund, please",
    ]
    assert near_duplicates(texts) == [(0, 1, 1.0), (0, 2, 0.8)]


@given(
    st.lists(st.lists(st.sampled_from("abcdefg"), max_size=7).map(" ".join), max_size=14),
    st.sampled_from([0.5, 0.8, 1.0]),
)
def test_search_is_exact(texts, threshold):
    texts = list({tuple(sorted(words(t))): t for t in texts}.values())
    bags = [set(numbered(words(t))) for t in texts]
    expected = [
        (i, j) for i in range(len(bags)) for j in range(i + 1, len(bags))
        if bags[i] and bags[j] and 2 * len(bags[i] & bags[j]) / (len(bags[i]) + len(bags[j])) >= threshold - 1e-9
    ]  # fmt: skip
    assert [(i, j) for i, j, _ in near_duplicates(texts, threshold)] == expected


def test_ten_thousand_rows_in_ten_seconds(data_dir):
    texts = [row.fields["text"] for row in load(data_dir / "banking77/train.csv").train]
    edited = texts[7].upper() + "!!"
    start = time.process_time()
    found = near_duplicates([*texts, edited])
    assert time.process_time() - start < 10
    assert (7, len(texts), 1.0) in found


def test_report(stories):
    names = ["Lily", "Ben", "Tom", "Max", "Sue", "Ann", "Joe", "Kim"]
    drawn = [random.Random(i).sample(names, 3) for i in range(9)]
    rows = [{"prompt": f"{a} {b}", "completion": f"{b} {c} and so on"} for a, b, c in drawn]
    rows += [{"prompt": "unique one two three", "completion": "four five six seven"}] * 2
    data = load({"train": rows, "test": [{"prompt": "Unique one, two three", "completion": "four five six eight"}]})
    report = inspect(data, stories, Lm(), 12)
    assert report.rows == {"train": 11, "test": 1}
    assert ("data:10", "data:11") in report.exact
    assert ("data:10", "data:1", 0.875) in report.leaks
    assert report.truncated_rows > 0
    assert 0 < report.trained_share < 1
    marked = report.samples[0].pieces
    assert [trained for _, trained in marked] == [False, True]
    assert report.to_dict()["shape"] == "completion"


def test_shown_with_marks(stories):
    from io import StringIO

    from rich.console import Console

    data = load([{"prompt": "Once\n", "completion": "more [b]"}] * 2)
    out = StringIO()
    show(inspect(data, stories, Lm(), 64), Console(file=out, width=200))
    assert "⟦more [b]</s>⟧" in out.getvalue()
    assert "exact duplicates: 1" in out.getvalue()


def test_labels_are_counted_without_a_model():
    data = load([{"text": "one", "label": "x"}, {"text": "two", "label": "x"}, {"text": "three", "label": "y"}])
    assert inspect(data, None, None, None).labels == {"x": 2, "y": 1}
    assert isinstance(data.train, Rows)
    assert isinstance(data, Data)


def test_threshold_is_checked():
    with pytest.raises(ValueError, match="at most 1"):
        near_duplicates([], 1.5)


def test_of_a_gigantic_row_the_ends_are_shown():
    from featherweight.data.show import WIDEST, ends

    assert ends("a" * WIDEST) == "a" * WIDEST
    shown = ends("a" * WIDEST + "b" * 1_000_000)
    assert len(shown) < WIDEST + 50
    assert shown.startswith("aaa")
    assert "[… 1,000,000 characters …]" in shown
    assert shown.endswith("bbb")
