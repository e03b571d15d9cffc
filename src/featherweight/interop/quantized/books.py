"""What transformers keeps on a model about bitsandbytes layers, brought up to date when these become other layers.

hf_quantizer, config.quantization_config, is_loaded_in_4bit, how tensors were read   ->  gone with the last one
quantization_config.llm_int8_skip_modules                                            ->  names what became plain
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from featherweight.core.host import base_modules
from featherweight.interop.root import pretrained

FLAGS = ("is_loaded_in_4bit", "is_loaded_in_8bit", "hf_quantizer", "is_quantized", "quantization_method")


def forget(model: nn.Module) -> None:
    """None of the library's layers is left in the transformers models inside `model`."""
    for whole in pretrained(model):
        held: Any = whole
        for name in FLAGS:
            vars(held).pop(name, None)
        vars(held.config).pop("quantization_config", None)
        read = vars(held).get("_weight_conversions") or []
        held._weight_conversions = [c for c in read if not any(map(deserializes, getattr(c, "operations", ())))]


def deserializes(operation: Any) -> bool:
    """Whether an operation reads bitsandbytes' tensors: transformers would undo it at saving, and cannot."""
    return type(operation).__name__.startswith("Bnb")


def skip(model: nn.Module, plain: Iterable[nn.Module]) -> None:
    """These layers became plain ones, others did not: a saved folder has to say which to leave alone."""
    became = {id(m) for m in plain}
    for whole in pretrained(model):
        held: Any = whole
        said: Any = getattr(held.config, "quantization_config", None)
        if not hasattr(said, "llm_int8_skip_modules"):
            continue
        listed = said.llm_int8_skip_modules
        if listed is None:  # by default what stayed plain: the head, and what is tied to it
            listed = [p for p, m in base_modules(held) if type(m) is nn.Linear]
        there = [p for p, m in base_modules(held) if id(m) in became]
        said.llm_int8_skip_modules = list(dict.fromkeys([*listed, *there]))
