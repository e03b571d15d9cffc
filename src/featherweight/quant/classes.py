"""Which quantized class a module class has: nn.Linear and what looks like it, Conv1D, embeddings.

A class found here is used as it is; another is made once, as a subclass of the module's own class, so that names,
`isinstance` and pickles stay what they were (`core.derived`).
"""

from functools import cache
from typing import Any

from torch import nn

from featherweight.core.derived import derive
from featherweight.core.part import conv1d
from featherweight.quant.embedding import Looked, QuantEmbedding
from featherweight.quant.linear import Multiplied, QuantLinear, Turned

CLASSES: dict[type[nn.Module], type[Any]] = {nn.Linear: QuantLinear, nn.Embedding: QuantEmbedding}


@cache
def quantized_class(cls: Any) -> Any:
    """The quantized class of a module class, None where there is none."""
    if cls in CLASSES:
        return CLASSES[cls]
    mixin = mixin_of(cls)
    return None if mixin is None else derive(cls, quantized_class, mixin, plain=cls)


def mixin_of(cls: Any) -> type[Any] | None:
    if issubclass(cls, nn.Linear) and cls.forward is nn.Linear.forward:
        return Multiplied
    if conv1d(cls):
        return Turned
    if issubclass(cls, nn.Embedding):
        return Looked
    return None
