"""The bundled support messages: balanced, varied, nothing twice, no template."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

DEMO = Path(__file__).parents[1] / "src/featherweight/cli/demo"
SIZES = {"train": 700, "valid": 120, "test": 180}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, str]]]:
    return {s: [json.loads(line) for line in (DEMO / f"{s}.jsonl").read_text("utf-8").splitlines()] for s in SIZES}


@pytest.fixture(scope="module")
def texts(splits) -> list[str]:
    return [row["text"] for rows in splits.values() for row in rows]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def grams(items, n: int) -> set[tuple]:
    """The n-grams of a sequence; what is shorter counts as one."""
    return {tuple(items[i : i + n]) for i in range(max(1, len(items) - n + 1))}


def likeness(sets: list[set]) -> np.ndarray:
    """The Jaccard similarity of every pair of sets, 0 for a set with itself."""
    ids: dict[tuple, int] = {}
    at = [[ids.setdefault(g, len(ids)) for g in one] for one in sets]
    sizes = np.array([len(one) for one in sets])
    rows = np.repeat(np.arange(len(sets)), sizes)
    has = csr_matrix((np.ones(len(rows)), (rows, np.concatenate(at))))
    both = (has @ has.T).toarray()
    alike = both / (sizes[:, None] + sizes - both)
    np.fill_diagonal(alike, 0)
    return alike


def near(texts: list[str]) -> list[tuple[str, str]]:
    """Pairs that are near-duplicates by words (3-grams) or by letters (5-grams)."""
    by_words = likeness([grams(words(t), 3) for t in texts])
    by_letters = likeness([grams(t.lower(), 5) for t in texts])
    return [(texts[i], texts[j]) for i, j in np.argwhere((by_words >= 0.5) | (by_letters >= 0.5)) if i < j]


def test_sizes_and_shape(splits):
    assert {s: len(rows) for s, rows in splits.items()} == SIZES
    assert all(
        set(row) == {"text", "label"} and row["text"] == row["text"].strip() for r in splits.values() for row in r
    )


def test_ten_intents_stratified_alike_in_every_split(splits):
    for split, rows in splits.items():
        counts = Counter(row["label"] for row in rows)
        assert len(counts) == 10
        assert set(counts.values()) == {SIZES[split] // 10}


def test_lengths_vary_from_a_few_words_to_a_paragraph(texts):
    lengths = sorted(len(words(t)) for t in texts)
    assert lengths[0] >= 3
    assert lengths[-1] <= 60
    assert lengths[len(lengths) // 10] <= 10
    assert lengths[len(lengths) * 9 // 10] >= 25


def test_the_measure_of_likeness_finds_what_it_should():
    one, same = "Where is my parcel, it should be here", "Where is my parcel, it should be here by now"
    two, shouted = "my card was declined", "My card was declined!!"
    assert near([one, two, same, shouted]) == [(one, same), (two, shouted)]


def test_no_message_comes_twice_within_or_across_splits(texts):
    assert near(texts) == []


@pytest.mark.parametrize(("n", "share"), [(5, 0.005), (4, 0.01)])
def test_no_template_shows_through(texts, n, share):
    """No run of n words is in more than a share of the messages, so nothing was filled into a frame."""
    seen = Counter(gram for t in texts if len(words(t)) >= n for gram in grams(words(t), n))
    gram, count = seen.most_common(1)[0]
    assert count <= share * len(texts), (gram, count)


def test_openings_vary(texts):
    opening, count = Counter(tuple(words(t)[:3]) for t in texts).most_common(1)[0]
    assert count <= 0.02 * len(texts), (opening, count)


def test_the_words_of_an_intent_do_not_give_it_away(splits):
    """Hard negatives: each telling word is used by customers of at least three other intents."""
    telling = {
        "refund": "refund",
        "cancel": "cancel_order",
        "subscription": "cancel_subscription",
        "address": "change_delivery",
    }
    telling |= {"return": "return_item", "payment": "payment_failed", "late": "late_delivery", "log": "account_access"}
    rows = [row for r in splits.values() for row in r]
    for word, intent in telling.items():
        others = {row["label"] for row in rows if word in words(row["text"])} - {intent}
        assert len(others) >= 3, (word, others)


def test_the_datasheet_names_every_intent(splits):
    sheet = (DEMO / "README.md").read_text("utf-8")
    for label in {row["label"] for row in splits["train"]}:
        assert f"`{label}`" in sheet
    for split, size in SIZES.items():
        assert f"| {split} | {size} |" in sheet
