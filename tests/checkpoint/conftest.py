"""The real peft as the judge, with its warnings as errors."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def peft_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is logged as a warning while a test runs is seen by `caplog`; peft and transformers log there too."""
    caplog.set_level(logging.WARNING)


@pytest.fixture
def judge() -> Callable[[Any, Path], Any]:
    """`judge(base, folder)`: the folder read by peft onto the base, each tensor of the file in its place."""
    return read_by_peft


def read_by_peft(base: Any, folder: Path) -> Any:
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    model = PeftModel.from_pretrained(base, str(folder)).eval()
    ours = load_file(folder / "adapter_model.safetensors")
    theirs = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[k].to(theirs[k].dtype), theirs[k]) for k in ours)
    return model
