"""QLoRA's code casts norms to float32 beside a 16-bit base. What that changes where they are frozen: nothing.

Llama's norms compute in float32 whatever their weight is in, and a frozen weight in bfloat16 is the same number in
float32. What it costs: a matrix product of float32 with bfloat16, which without autocast is an error.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

import featherweight as fw


def logits(model: Any, autocast: bool) -> torch.Tensor:
    ids = torch.arange(3, 200)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(ids).logits.float()


def test_norms_in_float32_change_no_output(data_dir: Path) -> None:
    model: Any = fw.load_base(data_dir / "stories260k" / "hf", fw.CausalLM(), dtype="bf16").eval()
    before = logits(model, True)
    assert torch.equal(before, logits(model, False))
    norms = [m for path, m in model.named_modules() if path.endswith("norm")]
    for norm in norms:
        norm.float()
    assert len(norms) == 11
    assert torch.equal(logits(model, True), before)
    with pytest.raises(RuntimeError, match="dtype"):
        logits(model, False)
