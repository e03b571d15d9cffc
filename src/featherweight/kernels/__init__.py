"""Fused functions, found by exact type and never imported by name; plain torch on every device, no compiled code.

Importing this package registers the fused adapters with `core.fused`; `fuse(model)` is for the frozen rest of a model.
"""

from featherweight.kernels import bank as bank  # registers rows of LoRA on nn.Linear
from featherweight.kernels import dora as dora  # registers DoRA on nn.Linear
from featherweight.kernels import lora as lora  # registers LoRA on nn.Linear
from featherweight.kernels.cross_entropy import linear_cross_entropy
from featherweight.kernels.fuse import fuse, unfuse

__all__ = ["fuse", "linear_cross_entropy", "unfuse"]
