"""Which rows make step n, on which rank, in which micro-batch: a pure function of integers.

`data.order` decides the global batches of an epoch, at random; a rank takes its run of each and cuts that into
micro-batches of like length:

    batch    9 41 12 38 10 40 11 39        padded to 41: 328 tokens
    micro    9 12 10 11 | 41 38 40 39      padded to 12 and 41: 212; the sum of their gradients is the batch's
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from featherweight.core.errors import FeatherweightError
from featherweight.data.collate import collate, collate_packed, integers
from featherweight.data.order import batches, cuts, pack
from featherweight.data.types import Batch, Encoded
from featherweight.train.ranks import Ranks, split

PARTS = 8  # micro-batches that a batch is cut into at most, where nobody asks for more
CALL = {"cpu": 64}  # what one more micro-batch costs, in tokens; launches weigh more where the products are fast
ELSEWHERE = 2048


@dataclass(frozen=True, eq=False)
class Feed:
    """The training rows in their order. With packing an item is a bin of several rows, else one row.

    `weights` has a number per row (`data.order.row_weights`). A bin has one draw for all its rows, so that rows of
    unlike weight never share one: each source is packed by itself, and a bin weighs what each of its rows does.
    """

    rows: Sequence[Encoded]
    batch: int
    seed: int
    pad: int
    buckets: bool = True
    packing: int | None = None  # tokens per bin
    weights: Sequence[float] | None = None

    @cached_property
    def items(self) -> list[list[int]]:
        """Row numbers of each item."""
        if self.packing is None:
            return [[i] for i in range(len(self.rows))]
        return [item for group in self.groups() for item in packed(group, self.rows, self.packing)]

    def groups(self) -> list[list[int]]:
        """Row numbers that may share a bin: all, or with weights those of equal weight."""
        if self.weights is None:
            return [list(range(len(self.rows)))]
        found: dict[float, list[int]] = {}
        for i, weight in enumerate(self.weights):
            found.setdefault(weight, []).append(i)
        return list(found.values())

    @cached_property
    def order(self) -> "Order":
        weights = None if self.weights is None else [self.weights[item[0]] for item in self.items]
        return Order(len(self.items), self.batch, self.seed, weights)

    def steps(self, epochs: float) -> int:
        """Optimizer steps that so many epochs take, at least 1."""
        return max(1, round(epochs * self.order.per_epoch))

    def step(self, number: int, ranks: Ranks, accumulate: int) -> list[list[list[int]]]:
        """This rank's micro-batches for step `number` (from 1), each a list of items; an empty one is left out.

        `accumulate` is how many there are at least. All ranks have as many: sharded layers call each other.
        """
        shares = split(self.order.batch_of(number), ranks.world)
        if not self.buckets:
            return [[self.items[i] for i in micro] for micro in split(shares[ranks.rank], accumulate) if micro]
        most = -(-max(map(len, shares)) // accumulate)
        plans = [dict(self.plans(share, max(PARTS, 2 * accumulate), most)) for share in shares]
        common = [k for k in plans[0] if k >= accumulate and all(k in p for p in plans)]
        if not common:  # fewer rows than micro-batches or ranks
            return [[self.items[i] for i in micro] for micro in split(shares[ranks.rank], accumulate) if micro]
        call = CALL.get(ranks.device.type, ELSEWHERE)
        parts = min(common, key=lambda k: max(p[k][0] for p in plans) + k * call)
        share = shares[ranks.rank]
        return [[self.items[share[i]] for i in group] for group in plans[ranks.rank][parts][1]]

    def plans(self, share: Sequence[int], parts: int, most: int) -> Iterator[tuple[int, tuple[int, list[list[int]]]]]:
        """(number of micro-batches, (padded tokens, positions of each)) of one rank's items."""
        sizes = [[sum(own) for own in zip(*(self.sizes[i] for i in self.items[item]), strict=True)] for item in share]
        return ((len(groups), (tokens, groups)) for tokens, groups in cuts(sizes, parts, most) if sizes)

    @cached_property
    def sizes(self) -> list[tuple[int, ...]]:
        """Tokens of each row: its inputs and, where a decoder has rows of its own, its labels or all of its choices."""
        inputs = [len(row.input_ids) for row in self.rows]
        others = [beside(row) for row in self.rows]
        if all(other in (0, own) for other, own in zip(others, inputs, strict=True)):
            return [(own,) for own in inputs]
        return list(zip(inputs, others, strict=True))

    def where(self, number: int) -> list[str]:
        """file:line of all rows of a step."""
        return [self.rows[i].where for item in self.order.batch_of(number) for i in self.items[item]]

    @cached_property
    def mass(self) -> float:
        """Units (trained tokens, or rows) of an average step over all ranks, by which every step's sum is divided.

        Divided by its own count, a batch of short rows would weigh as much as one of long rows.
        """
        whole = [self.order.batch_of(n) for n in range(1, self.order.per_epoch + 1)]
        return max(1, sum(units(self.rows[i]) for b in whole for item in b for i in self.items[item])) / len(whole)

    def tokens(self, number: int) -> int:
        """Real (not padding) tokens of a step over all ranks."""
        return sum(len(self.rows[i].input_ids) for item in self.order.batch_of(number) for i in self.items[item])

    def collate(self, items: Sequence[Sequence[int]]) -> Batch:
        """Tensors of some items."""
        if self.packing is None:
            return collate([self.rows[item[0]] for item in items], self.pad)
        return collate_packed([[self.rows[i] for i in item] for item in items], self.pad)


@dataclass(frozen=True, eq=False)
class Order:
    """The global batches of every epoch, each a list of item numbers."""

    items: int
    batch: int
    seed: int
    weights: Sequence[float] | None

    @cached_property
    def per_epoch(self) -> int:
        return len(self.epoch(0))

    @lru_cache(maxsize=2)  # noqa: B019  # an Order lives as long as its run
    def epoch(self, number: int) -> list[list[int]]:
        return batches(self.items, self.batch, self.seed, number, self.weights)

    def batch_of(self, step: int) -> list[int]:
        """Items of step `step`, counted from 1 over all epochs."""
        epoch, position = divmod(step - 1, self.per_epoch)
        plan = self.epoch(epoch)
        if len(plan) != self.per_epoch:
            raise FeatherweightError(f"epoch {epoch} has {len(plan)} batches, epoch 0 has {self.per_epoch}")
        return plan[position]


def packed(numbers: Sequence[int], rows: Sequence[Encoded], length: int) -> list[list[int]]:
    """Some rows, by number, in bins of at most `length` tokens."""
    bins = pack([len(rows[i].input_ids) for i in numbers], length)
    return [[numbers[i] for i in item] for item in bins]


def beside(row: Encoded) -> int:
    """Tokens of a row's choices, else of its labels; 0 where a label is no sequence of tokens."""
    if row.choices:
        return sum(map(len, row.choices))
    return len(row.labels) if sequence(row) else 0


def units(row: Encoded) -> int:
    """What the row says; else trained tokens of a sequence, 1 for anything with one label."""
    if row.units is not None:
        return row.units
    if sequence(row):
        return sum(label != -100 for label in row.labels)
    return 1


def sequence(row: Encoded) -> bool:
    """Whether its label is one of token ids."""
    return bool(row.labels) and integers(row.labels)


def moved(batch: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """A batch's tensors on the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
