"""T-Few's Table 1 from its own inputs, and what of it does not follow from them."""

from math import inf

import pytest

from featherweight.baselines.published import BATCH, HELD_OUT, QUERY, RAFT, SHOT, SHOTS, STEPS, TABLES
from featherweight.baselines.rule import TOKEN_BYTES, break_even, inference_flops, prompt_tokens, training_flops

BY = {r.name: r for r in HELD_OUT}
# exact values of the rule, and the figures as the paper prints them
QUERIES = {"T-Few": (1.133e12, "1.1e+12"), "T0 (zero-shot)": (1.133e12, "1.1e+12"), "T5+LM": (4.5331e13, "4.5e+13"),
           "GPT-3 175B": (1.44235e15, "1.4e+15")}  # fmt: skip


def query(rival):
    tokens = prompt_tokens(rival.shots, SHOT, QUERY)
    return inference_flops(rival.parameters, tokens, rival.encoder_decoder)


@pytest.mark.parametrize("name", QUERIES)
def test_flops_of_a_query_of_table_1(name):
    exact, printed = QUERIES[name]
    assert query(BY[name]) == pytest.approx(exact, rel=1e-12)
    assert f"{query(BY[name]):.1e}" == f"{BY[name].query:.1e}" == printed


def test_two_rows_of_table_1_leave_the_query_out():
    """GPT-3 6.7B and 13B: the rule gives 5.5e13 and 1.1e14; what is printed is the rule on the 41 shots alone."""
    for name, rule, printed in (("GPT-3 6.7B", "5.5e+13", "5.4e+13"), ("GPT-3 13B", "1.1e+14", "1.0e+14")):
        rival = BY[name]
        assert f"{query(rival):.1e}" == rule
        assert f"{rival.query:.1e}" == printed
        assert f"{inference_flops(rival.parameters, prompt_tokens(SHOTS, SHOT, 0)):.1e}" == printed


def test_training_of_table_1():
    found = training_flops(11e9, QUERY, STEPS * BATCH, encoder_decoder=True)
    assert found == pytest.approx(2.7192e16, rel=1e-12)
    assert f"{found:.1e}" == f"{BY['T-Few'].training:.1e}" == "2.7e+16"


def test_disk_of_table_1():
    """16 kB: the examples' token ids. 4.2 MB is printed for what comes to 4.33 MB, or 4.125 MiB."""
    assert SHOTS * SHOT * TOKEN_BYTES == 16_072
    values = 24 * (2 * 4096 + 10240) + 24 * (4 * 4096 + 10240)
    assert values == 1_081_344
    assert values * 4 == 4_325_376
    assert values * 4 / 2**20 == pytest.approx(4.125)


def test_the_break_even_of_the_caption():
    """ "about as much as ICL on 20 examples with GPT-3 175B": 18.87 queries apart, so cheaper from the 19th on."""
    tuned, untuned = query(BY["T-Few"]), query(BY["GPT-3 175B"])
    training = training_flops(11e9, QUERY, STEPS * BATCH, encoder_decoder=True)
    assert training == 24_000 * tuned  # 3 x 1,000 x 8 queries of its own
    assert (
        training / (untuned - tuned) == pytest.approx(24_000 / (untuned / tuned - 1)) == pytest.approx(18.867, abs=1e-3)
    )
    assert break_even(training, tuned, untuned) == 19
    assert 18 * untuned < training + 18 * tuned
    assert 19 * untuned > training + 19 * tuned
    assert untuned / tuned == pytest.approx(1273, abs=0.5)  # "over 1,000x lower"


def test_break_even_by_hand():
    assert break_even(100, 1, 11) == 11  # 10 queries cost the same, 110 each
    assert break_even(0, 1, 2) == 1
    assert break_even(99, 1, 11) == 10
    assert break_even(100, 2, 2) == inf
    assert break_even(100, 3, 2) == inf


def test_published_rivals_are_marked_as_such():
    assert [(r.name, r.accuracy) for r in RAFT] == [
        ("T-Few", 75.8), ("human", 73.5), ("PET", 69.6), ("SetFit", 66.9), ("GPT-3", 62.7),
    ]  # fmt: skip
    assert [r.accuracy for r in HELD_OUT] == [72.4, 66.9, 49.6, 57.2, 60.3, 66.6]
    for table in TABLES:
        assert table.cells[0][0] == "published"
        assert "arXiv:2205.05638" in table.to_dict()["source"]
    first = TABLES[0].to_dict()["rows"][0]
    assert first == {"published": "T-Few", "accuracy": "72.4%", "training FLOPs": "2.7e+16", "FLOPs a query": "1.1e+12",
                     "disk": "4.2 MB"}  # fmt: skip
    assert list(TABLES[1].to_dict()["rows"][0]) == ["published", "accuracy"]
