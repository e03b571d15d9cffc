"""A run that does not learn is told of, with a rate to try; one that does is left in peace."""

import pytest

from featherweight.tasks import CausalLM, Classification
from featherweight.train.advice import advice, flat, one_class, rate

TASK = Classification(labels=("no", "yes"))


def losses(*values):
    return [{"step": i, "loss": v} for i, v in enumerate(values)] + [{"step": 9, "dev": {"loss": 9.0}}]


def test_one_class_is_seen_only_where_the_rows_have_several():
    same, both = [[0.1, 0.9], [0.4, 0.6]], [[0.1, 0.9], [0.6, 0.4]]
    assert one_class(TASK, same, ["no", "yes"]) == "yes"
    assert one_class(TASK, both, ["no", "yes"]) is None
    assert one_class(TASK, same, ["yes", "yes"]) is None
    assert one_class(CausalLM(), [], []) is None


def test_flat_is_a_loss_that_never_fell():
    assert flat(losses(0.7, 0.71, 0.7)) == (0.7, 0.7)
    assert flat(losses(0.7, 0.9, 0.69)) is None
    assert flat(losses(0.7)) is None


@pytest.mark.parametrize(
    ("used", "own", "rose", "said"),
    [(1e-5, 3e-4, False, 3e-4), (3e-4, 3e-4, False, 9e-4), (3e-4, 3e-4, True, 1e-4), (1.0, 3e-4, False, 3e-4)],
)
def test_the_rate_goes_towards_the_methods_own(used, own, rose, said):
    assert rate(used, own, rose) == pytest.approx(said)


def test_the_line_names_signs_and_a_rate():
    assert advice(None, 8, losses(0.7, 0.3), 1e-3, 1e-3) is None
    said = advice("yes", 8, losses(0.7, 0.8, 0.9), 1e-2, 1e-3)
    assert "all 8 dev predictions are 'yes'" in said
    assert "never fell below its first value (0.7000, then 0.8000 at best)" in said
    assert "try lr=0.001 (this run: 0.01)" in said


def test_a_collapsed_run_says_so_once_and_a_good_one_nothing(make, tokenizer, class_rows, split, capsys):
    import featherweight as fw

    data = split(class_rows, 10)
    given = {"method": fw.BitFit(), "tokenizer": tokenizer, "batch": 8, "epochs": 2}
    fw.train(make("bert"), data, lr=1e-12, **given)
    said = capsys.readouterr().err
    assert said.count("does not seem to learn: all 10 dev predictions are") == 1
    fw.train(make("bert"), data, **{**given, "method": fw.Full(), "epochs": 6}, lr=3e-3)
    assert "does not seem to learn" not in capsys.readouterr().err
