"""`adopt`: live bitsandbytes layers become ours, over the very same codes: what the library computed wrongly is right.

Linear4bit, Linear8bitLt   ->   QuantLinear with NF4, FP4 or LLMInt8, which saves, merges and trains like any other
"""

from typing import Any

import torch
from torch import nn

from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.core.host import Host, base_modules
from featherweight.interop.quantized import bnb
from featherweight.interop.quantized.bnb4 import read4
from featherweight.interop.quantized.bnb8 import read8
from featherweight.interop.quantized.books import forget
from featherweight.interop.quantized.live import become_linear
from featherweight.interop.quantized.live_bnb import Linear4bit, Linear8bitLt
from featherweight.quant.llmint8 import LLMInt8
from featherweight.quant.quantize import on_quantize
from featherweight.quant.quantized import become_quantized
from featherweight.quant.scheme import Packed, Scheme


def adopt(model: nn.Module) -> nn.Module:
    """Make every live bitsandbytes layer of a model one of ours, in place; no memory is copied.

    Raises InputError where there is none, while adapters are attached, and for codes that no scheme of ours has;
    the model is then as it was.
    """
    found = {path: m for path, m in base_modules(model) if opened(m) is not None}
    if any(isinstance(m, Host) for _, m in base_modules(model)):
        raise InputError(Problem("adapters are attached", "model", fix="adopt first, then attach; or detach them"))
    if not found:
        kinds = listed(sorted({type(m).__name__ for m in model.modules()}))
        raise InputError(Problem("no quantized bitsandbytes layer in the model", "model", got=kinds))
    made: dict[str, tuple[Scheme, Packed]] = {}
    problems: list[Problem] = []
    for path, module in found.items():
        try:
            made[path] = ours(path, module)
        except InputError as error:
            problems += error.problems
    raise_all(problems)
    for path, module in found.items():
        there = opened(module)
        become_linear(module, torch.empty(there.shape, dtype=there.dtype, device="meta"))
        become_quantized(module, *made[path])
    forget(model)
    for tell in on_quantize:
        tell(model)
    return model


def opened(module: Any) -> Any:
    return Linear4bit().opened(module) or Linear8bitLt().opened(module)


def ours(path: str, module: Any) -> tuple[Scheme, Packed]:
    """A live layer's scheme and tensors."""
    dtype = torch.float32 if module.bias is None else module.bias.dtype
    Linear4bit().settle(module, dtype)  # what eval mode has put in another order
    saved = {f"{path}.{name}": t for name, t in module.state_dict().items()}
    if f"{path}.SCB" in saved:
        weight = read8(saved, path)
        return LLMInt8(float(module.state.threshold)), {"codes": weight.codes, "absmax": weight.absmax}
    four = read4(saved, path)
    return bnb.scheme4(four, f"{path}.weight"), bnb.packed4(four)
