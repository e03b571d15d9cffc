"""Tables as constants: made once for a device, never for a layer; safe where tensors are not plain ones."""

import torch
from torch._subclasses import FakeTensorMode

from featherweight.quant import FP4, NF4, codebooks


def test_a_table_is_made_once() -> None:
    x = torch.ones(3)
    assert codebooks.levels("nf4", x) is codebooks.levels("nf4", torch.zeros(1, dtype=torch.uint8))
    assert codebooks.searched("fp4-e2m1", x) is codebooks.searched("fp4-e2m1", x)
    assert codebooks.searched("fp4-e2m1", x) is not codebooks.levels("fp4-e2m1", x)


def test_inference_mode_leaves_an_ordinary_table() -> None:
    codebooks.MADE.clear()
    with torch.inference_mode():
        made = codebooks.levels("nf4", torch.ones(1))
    assert not made.is_inference()


def test_shapes_can_be_worked_out_without_data() -> None:
    """Under fake tensors, as tracers and planners run; and what is cached stays real."""
    with FakeTensorMode() as mode:
        packed = {n: torch.empty(dims, dtype=dtype) for n, (dtype, dims) in NF4(double=True).layout((48, 80)).items()}
        assert NF4(double=True).decode(packed, (48, 80), torch.bfloat16).shape == (48, 80)
    assert mode is not None
    assert all(type(t) is torch.Tensor for t in codebooks.MADE.values())


def test_a_second_copy_of_a_level_is_moved_out_of_reach() -> None:
    searched = codebooks.searched("fp4-bitsandbytes", torch.ones(1))
    assert searched[8] == -2.0
    assert (searched == codebooks.levels("fp4-bitsandbytes", torch.ones(1))).sum() == 15
    assert codebooks.zero("fp4-bitsandbytes") == 0
    assert codebooks.zero("nf4") == 7
    assert FP4().codebook in codebooks.LEVELS
