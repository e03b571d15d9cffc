"""Text metrics against numbers worked by hand, and BLEU against sacrebleu on real rows."""

import csv
import math

import pytest

from featherweight.core.errors import InputError
from featherweight.evaluate import metrics
from featherweight.evaluate.metrics.nist import penalty
from featherweight.evaluate.metrics.rouge import longest_common
from featherweight.evaluate.metrics.tokens import mteval, treebank
from featherweight.evaluate.text import text_scores


@pytest.fixture(scope="module")
def human(data_dir):
    """E2E dev rows with several references: the first text of each meaning against the others."""
    grouped: dict[str, list[str]] = {}
    with (data_dir / "e2e_nlg" / "devset.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            grouped.setdefault(row["mr"], []).append(row["ref"])
    several = [texts for texts in grouped.values() if len(texts) > 1][:60]
    return [texts[0] for texts in several], [texts[1:] for texts in several]


def test_bleu_by_hand():
    score = metrics.bleu(["The cat is on the red mat"], [["the Cat is on the mat"]])
    assert score == pytest.approx((6 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25, abs=1e-12)


def test_bleu_takes_the_closest_reference_length():
    words = "a b c d e f g h"
    short = metrics.bleu(["a b c d"], [[words]])
    assert short == pytest.approx(math.exp(1 - 8 / 4), abs=1e-12)
    assert metrics.bleu(["a b c d"], [[words, "a b c x"]]) == pytest.approx(1.0)


def test_bleu_equals_sacrebleu_on_human_rows(human):
    import sacrebleu

    outputs, references = human
    most = max(map(len, references))
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    wanted = sacrebleu.BLEU(lowercase=True, tokenize="13a").corpus_score(outputs, streams).score
    assert metrics.bleu(outputs, references) == wanted / 100
    assert 0.4 < wanted / 100 < 0.9


def test_nist_by_hand():
    assert metrics.nist(["a b c"], [["a b d"]]) == pytest.approx(2 * math.log2(3) / 3)
    two = (
        math.log2(5 / 2) + 2 * math.log2(5)
    ) / 3 + 1 / 2  # unigrams a, b, c; bigram "a b" is one of two, worth one bit
    assert metrics.nist(["a b c"], [["a b d", "a c"]]) == pytest.approx(two)


def test_nist_over_rows_pools_counts_before_dividing():
    score = metrics.nist(["a", "b x x"], [["a"], ["b c c"]])
    assert score == pytest.approx(2 * math.log2(4) / 4)


def test_nist_penalty():
    assert penalty(2 / 3) == pytest.approx(0.5)
    assert penalty(1.5) == 1.0
    assert penalty(0.0) == 0.0
    full, cut = metrics.nist(["a b c"], [["a b c"]]), metrics.nist(["a b"], [["a b c"]])
    assert full == pytest.approx(math.log2(3))
    assert cut == pytest.approx(0.5 * math.log2(3))


def test_nist_clips_matches_at_one_reference():
    assert metrics.nist(["a a a"], [["a a", "a b"]]) == pytest.approx(2 * math.log2(4 / 3) / 3 + math.log2(3 / 1) / 2)


def test_rouge_l_by_hand():
    score = metrics.rouge_l(["a b c d"], [["a b", "a x c d e f"]])
    assert score == pytest.approx((1 + 1.44) * 0.75 * 1 / (1 + 1.44 * 0.75))
    assert metrics.rouge_l([""], [["a b"]]) == 0.0
    assert longest_common("abcbdab", "bdcaba") == 4


def test_rouge_by_hand():
    scores = metrics.rouge(["the cat sat"], [["the cat ran off"]])
    assert scores["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert scores["rougeL"] == scores["rouge1"]


def test_cider_by_hand():
    assert metrics.cider(["a b", "c x"], [["a b"], ["c d"]]) == pytest.approx((5 + 1.25) / 2)


def test_cider_clips_repetition_and_punishes_length():
    scores = metrics.cider(["a b a b", "c d"], [["a b"], ["c d"]])
    repeated = 10 / 4 * (1 / 2 + 1 / math.sqrt(5)) * math.exp(-4 / 72)
    assert scores == pytest.approx((repeated + 5) / 2)


def test_cider_of_words_that_every_row_has_is_zero():
    assert metrics.cider(["a", "a"], [["a"], ["a"]]) == 0.0


def test_tokenizers():
    assert " ".join(mteval("It's £20-25, isn't it? (3.5)")) == "it's £20 - 25 , isn't it ? ( 3.5 )"
    cut = treebank("It’s the £20-25 family-friendly café, don't you? 3.5!")
    assert " ".join(cut) == "it 's the £ 20-25 family-friendly café do n't you 3.5"


def test_exact_match_normalizes_as_squad():
    assert metrics.exact_match(["The  Eagle!", "an eagle"], [["eagle"], ["beagle", "owl"]]) == 0.5


def test_meteor_is_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"Java.*meteor-1\.5\.jar"):
        metrics.meteor(["a"], [["a"]])
    with pytest.raises(InputError, match="METEOR is not computed"):
        text_scores(["a"], [["a"]], kind="meteor")


def test_text_scores_of_humans(human):
    scores = text_scores(*human, kind="e2e")
    assert set(scores) == {"bleu", "nist", "rouge_l", "cider"}
    assert 4 < scores["nist"] < 15
    assert 0.4 < scores["rouge_l"] < 0.95
    worse = text_scores(human[0][1:] + human[0][:1], human[1], kind="e2e")
    assert all(worse[name] < scores[name] for name in scores)


def test_text_scores_take_one_reference_or_several():
    assert text_scores(["a b"], ["a b"], kind="exact") == text_scores(["a b"], [["x", "a b"]], kind="exact")


@pytest.mark.parametrize(
    ("predictions", "references", "kind", "message"),
    [
        (["a"], ["a"], "e2f", "did you mean 'e2e'"),
        (["a"], ["a", "b"], "exact", "expected 1, at least 1; got 2"),
        ([], [], "exact", "nothing to compare"),
        (["a", "b"], [["a"], []], "exact", r"references\[1\]: no reference"),
    ],
)
def test_text_scores_refuse(predictions, references, kind, message):
    with pytest.raises(InputError, match=message):
        text_scores(predictions, references, kind=kind)
