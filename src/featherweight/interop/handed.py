"""What an attention module of transformers hands to its attention function: queries and keys after all that the model
does to them (rotation by positions, norms), and the scale of their product.

    with handed(module, keep): model(...)      keep(q (b, h, s, d), k (b, kv heads, s, d), scale)

The module's forward asks the registry for the function that its config names; for as long as the context lasts its
config names one that keeps what it is handed and calls the model's own. The config itself is not touched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from featherweight.interop.attention import Renamed, eager, registry

NAME = "featherweight-handed"
Keep = Callable[[Tensor, Tensor, float], None]


class Kept(Renamed):
    """A config whose attention function keeps what it is handed."""

    _attn_implementation = NAME


@contextmanager
def handed(module: Any, keep: Keep) -> Iterator[None]:
    """Call `keep` for every call of the module's attention function."""
    if NAME not in registry():
        registry().register(NAME, around)
    own = module.config
    vars(module).update(config=Kept(own), keep_handed=keep)
    try:
        yield
    finally:
        module.config = own
        del vars(module)["keep_handed"]


def around(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    """The model's own attention function, once what it is handed was kept."""
    scale = kwargs.get("scaling")
    module.keep_handed(query, key, query.shape[-1] ** -0.5 if scale is None else scale)
    own = module.config.own
    return registry().get_interface(own._attn_implementation, eager(module))(
        module, query, key, value, attention_mask, **kwargs
    )
