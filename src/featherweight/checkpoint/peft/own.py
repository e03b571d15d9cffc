"""Methods that PEFT has no type for, in the same two files: type `FEATHERWEIGHT_<METHOD>`, field `method`, keys
`featherweight.<key>`.

The JSON holds the method's own file form; the tensors are the trained replacements under the names they have in the
model
(`featherweight.bert.encoder.layer.0.output.dense.bias`). peft refuses such a file by its type.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from featherweight.checkpoint.entry import ANY, Entry, same
from featherweight.checkpoint.peft.codec import Adapters, Codec
from featherweight.core.errors import InputError, Problem
from featherweight.core.method import Method
from featherweight.core.state import elastic

MARK = "FEATHERWEIGHT_"
PREFIX = "featherweight."


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    return {"method": method.to_dict()}


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    paths = tuple(f"{path}." if path else "" for path in adapters)
    free = elastic(adapters)
    return [
        same(f"{PREFIX}{key}", key, ANY if key in free else tuple(t.shape))
        for key, t in state.items()
        if key.startswith(paths)
    ]


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    form = config.get("method")
    if not isinstance(form, dict):
        raise InputError(Problem("no method", f"{where}:method", expected="the method's file form", got=repr(form)))
    return Method.from_dict(form, where=f"{where}:method")


def codec(kind: type[Method]) -> Codec:
    """The codec of a method that PEFT lacks."""
    return Codec(f"{MARK}{kind.__name__.upper()}", ("method", "modules_to_save"), config, entries, method)
