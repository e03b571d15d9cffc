"""A trained model's weights: near enough to zero-mean normal for NF4, and every scheme within its bound on them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.schemes import SCHEMES
from torch import Tensor

from featherweight.quant import NF4, Blockwise, Scheme


@pytest.fixture(scope="module")
def weights(data_dir: Path) -> dict[str, Tensor]:
    """The matrices of stories260k's blocks: 64 and 172 wide, the latter no multiple of a block."""
    tensors = load_file(data_dir / "stories260k" / "hf" / "model.safetensors")
    return {name: t.float() for name, t in tensors.items() if t.dim() == 2 and ".layers." in name}


def relative(scheme: Scheme, W: Tensor) -> float:
    decoded = scheme.decode(scheme.encode(W), tuple(W.shape), torch.float32)
    return float((decoded - W).norm() / W.norm())


def test_means_are_near_zero_and_nf4_is_as_on_normal_numbers(weights: dict[str, Tensor]) -> None:
    assert len(weights) == 35
    for name, W in weights.items():
        assert abs(float(W.mean() / W.std())) < 0.1, name
    errors = torch.tensor([relative(NF4(), W) for W in weights.values()])
    assert float(errors.median()) == pytest.approx(0.092, abs=0.004)
    integers = torch.tensor([relative(Blockwise(), W) for W in weights.values()])
    assert (errors < integers).all()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_bounds_hold(scheme: Scheme, weights: dict[str, Tensor]) -> None:
    for W in list(weights.values())[::12]:
        error = (scheme.decode(scheme.encode(W), tuple(W.shape), torch.float32) - W).abs()
        assert (error <= scheme.bound(W)).all()
