"""What the three tasks with a task head share: calling the model, and the rows that carry a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a batch that a model's forward takes; labels stay with the task."""
    return {name: batch[name] for name in INPUTS if name in batch}


def head_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """(batch, outputs) logits in fp32, whatever precision the model computes in."""
    logits: Tensor = model(**inputs(batch)).logits
    return logits.float()
