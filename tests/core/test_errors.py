"""Problems of many places are said once, by the field that is wrong and the number of its places."""

import pytest
import torch

import featherweight as fw
from featherweight.core.errors import Problem, alike


def test_one_field_at_many_places_is_one_problem() -> None:
    found = alike([Problem("too big", f"layers.{i}.up: method.rank", "4", "9") for i in range(24)] * 2)
    assert [str(p) for p in found] == [
        "method.rank (24 places, the first layers.0.up): too big; expected 4; got 9",
    ]


def test_a_place_alone_keeps_its_name_and_other_problems_stay_apart() -> None:
    there = [Problem("a", "x: method.n"), Problem("a", "y: method.m"), Problem("b", "x: method.n"), Problem("a", "z")]
    assert alike(there) == there
    assert alike([Problem("a", "y"), Problem("a", "z")]) == [Problem("a", "y, z")]


def test_a_rank_too_high_is_said_once_for_each_shape() -> None:
    layers = [torch.nn.Linear(4, 8) for _ in range(5)] + [torch.nn.Linear(8, 4), torch.nn.Linear(8, 2)]
    with pytest.raises(fw.InputError) as caught:
        fw.attach(torch.nn.ModuleList(layers), fw.LoRA(rank=9, targets=r"\d"))
    assert [p.where for p in caught.value.problems] == ["method.rank (5 places, the first 0)", "5: method.rank",
                                                        "6: method.rank"]  # fmt: skip


@pytest.mark.parametrize(("method", "where"), [
    (fw.LoRA(targets="nowhere"), "method.targets"), (fw.LoRA(targets="["), "method.targets"),
    (fw.IA3(feedforward="nowhere"), "method.feedforward"),
])  # fmt: skip
def test_targets_that_hit_nothing_name_their_field(method: fw.LoRA, where: str) -> None:
    from support.models import tiny

    with pytest.raises(fw.InputError) as caught:
        fw.attach(tiny("llama"), method)
    assert [p.where for p in caught.value.problems] == [where]
