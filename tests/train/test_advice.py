"""A run that does not learn is told of, with a rate to try; one that does is left in peace."""

import pytest
import torch

from featherweight.tasks import CausalLM, Classification
from featherweight.train.advice import advice, flat, one_class, rate, unmoved

TASK = Classification(labels=("no", "yes"))


def losses(*values):
    return [{"step": i, "loss": v} for i, v in enumerate(values, 1)] + [{"step": 9, "dev": {"loss": 9.0}}]


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


def test_a_first_step_by_chance_below_all_others_is_no_sign():
    """Lines at step 1, 10 and 20: the first is of one batch, and is taken together with the nine after it."""
    lines = [{"step": 1, "loss": 0.2}, {"step": 10, "loss": 0.7}, {"step": 20, "loss": 0.6}]
    assert flat(lines) is None
    assert flat([*lines[:2], {"step": 20, "loss": 0.66}]) == pytest.approx((0.65, 0.66))
    assert flat(lines[:2]) is None


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


def test_steps_relative_to_a_size_of_zero_are_told_of():
    """torch's Adafactor beside the line: B moves by a thousandth of the rate, as the line says."""
    A, B = (torch.nn.Parameter(t) for t in (torch.full((2, 3), 0.5), torch.zeros(4, 2)))
    trained = {"a/q.A": A, "a/q.B": B}
    assert unmoved("adamw", 0.1, trained) is None
    assert unmoved("adafactor", 0.1, {"a/q.A": A}) is None
    assert "1 of 2 begin at 0 and move by at most 0.0001 a step (a/q.B)" in unmoved("adafactor", 0.1, trained)
    A.grad, B.grad = torch.ones(2, 3), torch.ones(4, 2)
    torch.optim.Adafactor([A, B], lr=0.1, weight_decay=0.0).step()
    assert float(B.detach().abs().max()) <= 1.0001e-4 < 0.04 < float((A.detach() - 0.5).abs().min())
