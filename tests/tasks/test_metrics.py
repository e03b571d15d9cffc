"""Metrics of labels and numbers: by hand, and against scikit-learn on random answers."""

import math
import random

import pytest

from featherweight.tasks import metrics

P = ["a", "a", "b", "b", "c"]
R = ["a", "b", "b", "b", "a"]


def test_accuracy_and_f1_by_hand():
    assert metrics.accuracy(P, R) == 3 / 5
    assert metrics.f1(P, R, "a") == pytest.approx(2 * 1 / (2 + 2))
    assert metrics.f1(P, R, "b") == pytest.approx(2 * 2 / (2 + 3))
    assert metrics.f1(P, R, "z") == 0.0
    assert metrics.macro_f1(P, R) == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)


def test_matthews_by_hand():
    assert metrics.matthews(["1", "1", "0", "0"], ["1", "0", "0", "0"]) == pytest.approx(2 / math.sqrt(2 * 1 * 2 * 3))
    assert metrics.matthews(["1", "1"], ["1", "0"]) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_class_metrics_equal_sklearn(seed):
    from sklearn import metrics as sk

    chance = random.Random(seed)
    p, r = (chance.choices("abcd", k=50) for _ in range(2))
    assert metrics.accuracy(p, r) == pytest.approx(sk.accuracy_score(r, p))
    assert metrics.macro_f1(p, r) == pytest.approx(sk.f1_score(r, p, average="macro"))
    p, r = (chance.choices(["no", "yes"], k=50) for _ in range(2))
    assert metrics.f1(p, r, "yes") == pytest.approx(sk.f1_score(r, p, pos_label="yes"))


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_multilabel_f1_equals_sklearn(average):
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import MultiLabelBinarizer

    chance, labels = random.Random(0), "abcde"
    p, r = ([tuple(x for x in labels if chance.random() < 0.4) for _ in range(40)] for _ in range(2))
    to = MultiLabelBinarizer(classes=list(labels)).fit([labels])
    wanted = f1_score(to.transform(r), to.transform(p), average=average)
    assert metrics.multilabel_f1(p, r, labels, average) == pytest.approx(wanted)


def test_multilabel_f1_by_hand():
    p, r = [("a",), ("a", "b")], [("a",), ("b", "c")]
    assert metrics.multilabel_f1(p, r, "abc", "macro") == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics.multilabel_f1(p, r, "abc", "micro") == pytest.approx(2 * 2 / 6)


def test_correlations_by_hand():
    assert metrics.pearson([1, 2, 3], [2, 4, 6.0]) == pytest.approx(1.0)
    assert metrics.pearson([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert metrics.spearman([1, 10, 100], [1, 2, 3]) == pytest.approx(1.0)
    assert metrics.spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert metrics.pearson([1, 1, 1], [1, 2, 3]) == 0.0
    assert metrics.spearman([1, 2], [3, 3]) == 0.0


def test_errors_and_perplexity():
    assert metrics.mean_squared_error([1, 2], [0, 4]) == 2.5
    assert metrics.perplexity(math.log(7)) == pytest.approx(7)
    assert metrics.perplexity(1e4) == math.inf


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="longer"):
        metrics.accuracy(["a"], ["a", "b"])
