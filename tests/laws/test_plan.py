"""What is planned on a model without storage is what the real one has: parameters and bytes of the file, exactly."""

from pathlib import Path
from typing import Any

import torch
from support.laws import law
from support.models import build, tiny

import featherweight as fw
from featherweight.plan.files import adapter_bytes
from featherweight.plan.shell import adapted


@law(each=3, dtypes=False)
def test_counts_and_file_are_planned_exactly(method: Any, arch: str, dtype: torch.dtype, tmp_path: Path) -> None:
    real = fw.attach(tiny(arch, dtype), method)
    with torch.device("meta"):
        shell = build(arch).eval()
    planned = adapted(shell, method)
    assert fw.trainable(planned) == fw.trainable(real)
    fw.save(real, tmp_path)
    assert adapter_bytes(planned) == (tmp_path / "adapter_model.safetensors").stat().st_size
