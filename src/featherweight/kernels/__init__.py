"""Fused functions, found by exact type and never imported by name, in plain torch on every device; and native code.

Importing this package registers the fused adapters with `core.fused` and native code with `quant.ops`; `fuse(model)` is
for the frozen rest of a model.
"""

from featherweight.kernels import bank as bank  # registers rows of LoRA on nn.Linear
from featherweight.kernels import dora as dora  # registers DoRA on nn.Linear
from featherweight.kernels import lora as lora  # registers LoRA on nn.Linear
from featherweight.kernels import native_linear as native_linear  # registers native products with codes
from featherweight.kernels import native_ops as native_ops  # registers native code for codes
from featherweight.kernels import native_token as native_token  # registers native code between products
from featherweight.kernels import qlora as qlora  # registers LoRA on linear layers over codes
from featherweight.kernels import triton_ops as triton_ops  # registers Triton's kernels for codes on a GPU
from featherweight.kernels.cross_entropy import linear_cross_entropy
from featherweight.kernels.fuse import fuse, unfuse

__all__ = ["fuse", "linear_cross_entropy", "unfuse"]
