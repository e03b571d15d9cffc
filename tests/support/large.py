"""Tests of peak memory: Llamas whose weights are what is measured, and processes that give back what they free."""

import subprocess
import sys
from os import environ
from pathlib import Path
from typing import Any

# A fixed threshold (65,536 bytes): a freed tensor is the system's again. glibc's own grows to what was freed last, and
# then tensors leave holes in the heap: the same merge peaked at 30 to 49 MB without this, at 20.0 +- 0.3 with it.
FRESH = {"MALLOC_MMAP_THRESHOLD_": "65536", "HF_HUB_OFFLINE": "1"}


def printed(script: str, *arguments: str | Path) -> str:
    """The last line that a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, env=environ | FRESH, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def filled_llama(width: int, layers: int, **options: Any) -> Any:
    """A Llama whose tensors hold a short ramp over and over: nothing is drawn, and no page is left untouched."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers, **options)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, 997).repeat(p.numel() // 997 + 1)[: p.numel()].view(p.shape))
    return model
