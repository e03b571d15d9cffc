"""`prepare`: let an attached method start from data or weights, outside of training (which does it by itself)."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from featherweight.core.state import adapters
from featherweight.core.switch import refresh, switch_of


def prepare(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], name: str = "default") -> nn.Module:
    """Call the method's own start on batches of the model's inputs (EVA's directions, FishMask's choice), in place.

    Raises InputError for an unknown name. A method without such a start is left as it is.
    """
    own = adapters(model, name)
    switch_of(model).attached[name].method.prepare(model, own, batches)
    refresh(model)
    return model
