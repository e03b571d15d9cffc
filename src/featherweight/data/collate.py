"""Items to tensors: right padding, or packed rows whose position ids restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featherweight.data.types import UNTRAINED, Batch, Encoded

if TYPE_CHECKING:
    from torch import Tensor


def collate(items: Sequence[Encoded], pad_id: int | None, packed: bool = False, multiple: int = 1) -> Batch:
    """(batch, seq) tensors, padded on the right to the longest (or to a multiple of `multiple`, 8 for tensor cores).

    `pad_id=None` pads with 0: the attention mask decides, never the id. packed: all items in one row, see
    `collate_packed`.
    """
    if packed:
        return collate_packed([items], pad_id, multiple)
    import torch

    width = up(max(len(item.input_ids) for item in items), multiple)
    tensors = {
        "input_ids": padded([item.input_ids for item in items], pad_id or 0, width),
        "attention_mask": padded([[1] * len(item.input_ids) for item in items], 0, width),
    }
    if kinds := [item.token_type_ids for item in items if item.token_type_ids is not None]:
        tensors["token_type_ids"] = padded(kinds, 0, width)
    if any(item.choices for item in items):
        tensors["choices"] = choices([item.choices or [] for item in items])
    if names := dict.fromkeys(name for item in items for name in item.more or {}):
        tensors |= {name: ragged([(item.more or {}).get(name, []) for item in items]) for name in names}
    labels = [item.labels for item in items if item.labels is not None]
    if len(labels) not in (0, len(items)):
        bare = next(item.where for item in items if item.labels is None)
        raise ValueError(f"{bare}: no label in a batch with labels")
    if labels:
        tensors["labels"] = tokens(items, width, multiple) if integers(labels[0]) else torch.tensor(labels)
    return Batch(tensors, [item.where for item in items])


def choices(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """(batch, most choices, longest) token ids, -100 where there is no token: a choice without any is absent."""
    import torch

    width = max(len(ids) for row in rows for ids in row)
    most = max(map(len, rows))
    return torch.stack([padded([*row, *[[]] * (most - len(row))], UNTRAINED, width) for row in rows])


def ragged(rows: Sequence[Sequence[int]]) -> Tensor:
    """(batch, longest), -100 where there is none."""
    return padded(rows, UNTRAINED, max(map(len, rows)))


def tokens(items: Sequence[Encoded], width: int, multiple: int) -> Tensor:
    """Token labels (batch, seq): as wide as the inputs, except seq2seq's, which have their own length."""
    labels = [item.labels for item in items]
    same = all(len(item.labels) == len(item.input_ids) for item in items)
    return padded(labels, UNTRAINED, width if same else up(max(map(len, labels)), multiple))


def collate_packed(rows: Sequence[Sequence[Encoded]], pad_id: int | None, multiple: int = 1) -> Batch:
    """(rows, seq): each row concatenates its items; position ids restart and there is no attention mask.

    transformers builds the block-diagonal mask from the restarts. Padding at the end is a sequence of its own. The
    first label of every item is untrained, for it would be predicted from the item before.
    """
    width = up(max(sum(len(item.input_ids) for item in row) for row in rows), multiple)
    ids = [[i for item in row for i in item.input_ids] for row in rows]
    places = [[p for item in row for p in range(len(item.input_ids))] for row in rows]
    places = [row + list(range(width - len(row))) for row in places]
    labels = [[label for item in row for label in [UNTRAINED, *item.labels[1:]]] for row in rows]
    tensors = {
        "input_ids": padded(ids, pad_id or 0, width),
        "position_ids": padded(places, 0, width),
        "labels": padded(labels, UNTRAINED, width),
    }
    return Batch(tensors, [item.where for row in rows for item in row])


def padded(rows: Sequence[Sequence[int]], fill: int, width: int) -> Tensor:
    import torch

    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)


def integers(label: Any) -> bool:
    return isinstance(label, list) and all(isinstance(v, int) for v in label)


def up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
