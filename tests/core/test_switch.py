"""Names and strengths that switching takes, and what it refuses."""

import pytest
from support.models import tiny

import featherweight as fw


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_is_a_finite_number(strength):
    model = fw.attach(tiny("bert"), fw.LoRA(rank=2), "law")
    with pytest.raises(fw.InputError, match=r"law: not a strength; expected a finite number; got"):
        fw.switch(model, {"law": strength})


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "a\\b"])
def test_names_are_no_paths(name):
    with pytest.raises(fw.InputError, match="not a name for an adapter"):
        fw.attach(tiny("bert"), fw.LoRA(rank=2), name)
