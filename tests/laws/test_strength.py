"""An adapter turned down: at 0 the base, at 1 the adapter, in between the same as when it is merged there."""

from typing import Any

import pytest
import torch
from support.laws import attached, far, law
from support.models import inputs, logits, tiny

import featherweight as fw
from featherweight.core.host import hosts


@law(dtypes=False, each=4)
def test_strength(method: Any, arch: str, dtype: torch.dtype) -> None:
    model, batch = attached(method, arch), inputs(arch)
    full = logits(model, batch)
    if any(a.joint is not None for _, host in hosts(model) for a in host.adapters.values()):
        with pytest.raises(fw.InputError, match="a: has no strength"):
            fw.switch(model, {"a": 0.5})
        assert torch.equal(logits(model, batch), full)
        return
    with fw.switch(model, {"a": 0.0}):
        assert torch.equal(logits(model, batch), logits(tiny(arch), batch))
    with fw.switch(model, {"a": 1.0}):
        assert torch.equal(logits(model, batch), full)
    with fw.switch(model, {"a": 0.5}):
        half = logits(model, batch)
        assert far(half, full) > 0
        assert far(half, logits(tiny(arch), batch)) > 0
        if method.mergeable:
            with fw.merged(model):
                assert far(logits(model, batch), half) <= 1e-5
    assert torch.equal(logits(model, batch), full)
