"""The contract of a recipe: a noun whose `terms` gives what it adds up, each before its weight, so that one that drowns
the others is seen. A term has one value a row: the mean over what it compares there.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from featherweight.core.noun import Noun
from featherweight.distill.losses import row_mean
from featherweight.distill.taps import Seen

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class View:
    """A batch as student and teacher see it.

    `logits` (of both, (n, V)) and `label` (the task's own loss) are functions: not every recipe asks. `asked` (b, seq)
    says where logits are compared, None where a row has one answer. `real` (b, s) are the tokens whose hidden states
    count, `read` those of an encoder beside a decoder. `keys` (b, 1 or s, s) is True where a query may look. `lift`
    brings one of the student's states, by its number, to the teacher's width.
    """

    student: Seen
    teacher: Seen
    logits: Callable[[], tuple[Tensor, Tensor]]
    label: Callable[[], Tensor]
    keys: Tensor
    real: Tensor
    asked: Tensor | None = None
    read: Tensor | None = None
    lift: Callable[[int, Tensor], Tensor] = lambda number, states: states

    def compared(self, loss: Callable[..., Tensor], *options: Any) -> Tensor:
        """(b,): a loss between the logits of both, a mean over each row's positions."""
        values = loss(*self.logits(), *options)
        return values if self.asked is None else row_mean(spread(values, self.asked), self.asked)

    def tokens(self, values: Tensor) -> Tensor:
        """(b, s) -> (b,): the mean over each row's real tokens."""
        return row_mean(values, self.real)


def spread(values: Tensor, where: Tensor) -> Tensor:
    """(n) values of the n positions that `where` (b, s) has, in their places; 0 elsewhere."""
    return values.new_zeros(where.shape).masked_scatter(where, values)


class Term(NamedTuple):
    """One loss: its weight and (b,) values."""

    weight: float
    values: Tensor


class Writers(NamedTuple):
    """Two ways to a batch whose answers a model wrote: (batch, max_new_tokens, **options of `generate`) -> batch."""

    student: Callable[..., Batch]
    teacher: Callable[..., Batch]


@dataclass(frozen=True, repr=False)
class Recipe(Noun):
    """Base of every recipe."""

    softmax: ClassVar[bool] = False  # compares distributions over labels or words
    states: ClassVar[bool] = False  # compares hidden states: of another width by a learned projection
    attention: ClassVar[bool] = False  # compares attention maps: the head counts must be equal
    writes: ClassVar[bool] = False  # looks at text that is written in training: no two epochs see the same
    answers: ClassVar[bool] = False  # a model writes every answer that is looked at: rows need none
    autos: ClassVar[tuple[str, ...]] = ()  # transformers' Auto classes of the tasks that it is for; none: of any
    everywhere: ClassVar[bool] = False  # where hidden tokens are filled in, compares logits at all others too

    stages: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)  # as published: runs in order, with these options each

    def layers(self, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
        """Pairs of blocks (the student's, the teacher's) whose projections are compared, for so many blocks."""
        return ()

    def lifted(self, student: int) -> tuple[int, ...]:
        """Which of the hidden states of a student of so many blocks are compared: 0 the embeddings, i + 1 block i's."""
        return ()

    def shown(self, batch: Batch, write: Writers) -> Batch:
        """The batch that both models are shown: the given one, or one that either wrote."""
        return batch

    @abstractmethod
    def terms(self, view: View) -> dict[str, Term]:
        """What is added up, by name."""
