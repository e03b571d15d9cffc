"""The bytes of an adapter's file, exactly, from a model without storage: its tensors by the table that saving uses, and
the header with metadata of the very length.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.checkpoint.entry import ANY, Entry
from featherweight.checkpoint.files import header
from featherweight.checkpoint.fingerprint import FEW, Fingerprint, frozen
from featherweight.checkpoint.peft.common import base_name, brought
from featherweight.checkpoint.record import Record, digest
from featherweight.checkpoint.save import config_of, entries_of, in_use, release
from featherweight.core.encoded import Encoded
from featherweight.core.host import frozen_class
from featherweight.core.method import Adapted
from featherweight.core.state import adapters, state
from featherweight.core.switch import switch_of

MOST = 1 << 33  # bytes of zeros


def adapter_bytes(model: nn.Module, name: str = "default") -> int:
    """The size of adapter_model.safetensors that saving this adapter writes, where the base has no path on record."""
    made = adapters(model, name)
    fill(made)
    kept = in_use(model, name, made, state(model, name))
    config, method = config_of(model, name, made)
    tensors = {e.key: bare(e, kept[e.parts[0]]) for e in entries_of(model, name, made, kept)}
    attached, task = switch_of(model).attached[name], getattr(model, "task", None)
    record = Record(
        version=release(), method=method.to_dict(), head=attached.head,
        task=task.to_dict() if task is not None else None, base=blank(model, brought(model, tensors)), base_path=None,
        seed=int(getattr(model, "new_seed", 0)), config=digest(config),
    )  # fmt: skip
    text = header(tensors, record.to_metadata())[1]
    return len(text) + sum(t.numel() * t.element_size() for t in tensors.values())


def bare(entry: Entry, first: Tensor) -> Tensor:
    """A tensor as it will be stored, without values."""
    return torch.empty(first.shape if entry.shape == ANY else entry.shape, dtype=first.dtype, device="meta")


def fill(made: Adapted) -> None:
    """Give adapters zeros to be read, where that is little: some methods record what their values say. Zeros that are
    only read take no memory.
    """
    modules = [m for a in made.values() for m in a.modules()]
    held = {id(t): t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None}
    if sum(t.numel() * t.element_size() for t in held.values()) > MOST:
        return
    zeros = {key: zero(t) for key, t in held.items() if t.is_meta}
    parts: list[dict[str, Any]] = [part for m in modules for part in (m._parameters, m._buffers)]
    for tensors in parts:
        for name, t in tensors.items():
            tensors[name] = zeros.get(id(t), t)


def zero(tensor: Tensor) -> Tensor:
    made = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def blank(model: nn.Module, without: Collection[str]) -> Fingerprint:
    """A fingerprint of the length that the model's own will have."""
    tensors = frozen(model, without)
    name, cls = base_name(model) or "", frozen_class(model).__name__
    sample = 4 * FEW * len(tensors)
    return Fingerprint(
        base=f"{cls} ({name})" if name else cls,
        parameters=sum(t.count if isinstance(t, Encoded) else t.numel() for t in tensors.values()),
        dtype="+".join(sorted(str(d).removeprefix("torch.") for d in {t.dtype for t in tensors.values()})),
        names="0" * 8 * len(tensors),
        exact="0" * 8 * len(tensors),
        sample="0" * (4 * -(-sample // 3)),
        scheme=", ".join(sorted({t.scheme for t in tensors.values() if isinstance(t, Encoded)})),
    )
