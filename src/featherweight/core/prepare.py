"""`prepare`: let an attached method start from data or weights, outside of training (which does it by itself)."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem
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


Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


def own_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss that the model itself computes from the labels in a batch. Raises InputError where it has none."""
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise InputError(Problem("the model computes no loss from this batch", "batches", "inputs and labels",
                                 ", ".join(batch), "add labels, or let fw.train prepare the adapter"))  # fmt: skip
    return loss


def say(batches: object, text: str) -> None:
    """Tell people what a start is at, where the batches know whom to tell."""
    tell = getattr(batches, "say", None)
    if tell is not None:
        tell(text)


class Batches:
    """What `prepare` is given by training: micro-batches, as often as they are asked for, the loss of one, summed
    over its units, and whom to tell of long work.
    """

    def __init__(
        self, make: Callable[[], Iterable[Mapping[str, Tensor]]], loss: Loss = own_loss,
        say: Callable[[str], None] | None = None,
    ):  # fmt: skip
        self.make, self.loss, self.say = make, loss, say

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        return iter(self.make())
