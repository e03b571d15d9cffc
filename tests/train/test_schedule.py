from itertools import pairwise
from math import cos, pi

import pytest

from featherweight.train.schedule import SCHEDULES, factor, warmup_steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_climbs_to_the_peak_and_no_step_is_wasted(name):
    rates = [factor(name, s, 20, 5) for s in range(1, 21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0
    assert all(a >= b for a, b in pairwise(rates[5:]))
    assert min(rates) > 0


def test_the_curves_are_the_named_ones():
    assert factor("linear", 10, 10) == pytest.approx(0.1)
    assert factor("cosine", 6, 10) == pytest.approx(0.5 * (1 + cos(pi / 2)))
    assert {factor("constant", s, 9) for s in range(1, 10)} == {1.0}


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.06, 6), (0.055, 6), (1, 1), (30.0, 30), (500, 100)])
def test_warm_up_is_a_share_or_a_number_of_steps(warmup, steps):
    assert warmup_steps(warmup, 100) == steps
