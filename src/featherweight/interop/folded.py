"""A model with adapters written as the plain model that merging would make of it, one host at a time.

    every host: merged, checked, forgotten      then every tensor: made again, written, forgotten

No weight is put into the model, so that neither a second copy nor, where its tensors stay in their files (`filed.py`),
a first one is in memory: the peak is a host, the adapters, and codes where the base is kept as such.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.base import read
from featherweight.core.encoded import encoded, identity, like, names
from featherweight.core.host import base_modules, frozen_class
from featherweight.core.merge import Rewritten, checked, folded, on_untie, sharers, untie
from featherweight.interop.filed import Filed, Source, near, whole
from featherweight.interop.rounding import Rounding, name_of, rounded
from featherweight.interop.shards import LARGEST, Due, write


def write_merged(model: Any, folder: Path, rounding: Rounding | None = None, largest: int = LARGEST) -> int:
    """Write the merged model to a folder: weights and configs; gives how many parameters it has. `rounding` says in
    what dtypes (default: as the base's files have them) and gathers what that costs.

    Raises NotMergeable and, for NaN and infinity, FeatherweightError before anything is written; InputError for what is
    too large for the dtype.
    """
    new: set[tuple[int, str]] = set()
    rounding = rounding or Rounding.of(model)

    def see(found: Rewritten) -> None:
        new.update((id(host), name) for host, name, _ in found)
        rounding.see(found)

    groups = checked(model, see)
    holders = sharers(model)
    loose = [untie([one for path, host in group for one in folded(path, host)], holders) for group in groups
             if any(shared(host, holders) for _, host in group)]  # fmt: skip
    for hook in on_untie if any(loose) else ():
        hook(model)
    there = dict(tensors(model, new, rounding))
    write(folder, converted(model, there), largest)
    configs(model, folder, rounding.usual)
    return sum(tensor.shape.numel() for tensor in there.values())


def shared(host: Any, holders: Any) -> bool:
    return any(holders[id(identity(host, name))] > 1 for name in names(host))


def tensors(model: Any, new: set[tuple[int, str]], rounding: Rounding) -> Iterator[tuple[str, Filed]]:
    """The plain model's tensors by name, none of them read: merged, decoded, or as they are; tied ones once."""
    last: list[Any] = [None, {}]  # a host, and what it was merged to
    codes = {id(t) for _, m in base_modules(model) for e in encoded(m).values() for t in e.kept}
    ties = set(getattr(model, "all_tied_weights_keys", None) or {})
    seen: set[int] = set()

    def merged(path: str, host: Any, name: str) -> Tensor:
        if last[0] is not host:
            last[:] = [None, {}]
            last[:] = [host, {n: W for _, n, W in folded(path, host)}]
        made: Tensor = last[1][name]
        return made

    found = [(f"{path}.{name}".lstrip("."), path, module, name) for path, module in base_modules(model) for name in kept(module, codes)]  # fmt: skip  # noqa: E501
    for key, path, module, name in sorted(found, key=lambda one: one[0] in ties):
        own = id(identity(module, name)) if name in names(module) else id(module._buffers[name])
        if own in seen:
            continue
        seen.add(own)
        now = like(module, name)
        kind = rounding.dtype(key, now.dtype)
        make: Callable[[], Tensor] = lambda m=module, n=name, k=kind: whole(near(read(m, n), k))  # type: ignore[misc]  # noqa: E731
        if (id(module), name) in new:
            make = lambda p=path, m=module, n=name: merged(p, m, n)  # type: ignore[misc]  # noqa: E731
        last_step = partial(once, key, make, kind)
        yield key, Filed(Source(last_step, torch.empty(now.shape, dtype=kind, device="meta"), kept=False))


def once(key: str, make: Callable[[], Tensor], kind: torch.dtype) -> Tensor:
    """A tensor, made and rounded."""
    return rounded(key, make(), kind)


def kept(module: nn.Module, codes: set[int]) -> list[str]:
    """The names of a module's tensors that a plain model's file has."""
    lasting = (n for n, t in module._buffers.items() if t is not None and n not in module._non_persistent_buffers_set)
    return [*names(module), *(n for n in lasting if id(module._buffers[n]) not in codes)]


def converted(model: Any, there: dict[str, Filed]) -> dict[str, Due]:
    """The tensors under the names, and in the parts, that the architecture's files have."""
    from transformers.core_model_loading import revert_weight_conversion

    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    form = revert_weight_conversion(model, {k: t for k, t in there.items() if k not in ignored})
    return {k: Due(t.dtype, tuple(t.shape), lambda t=t: whole(t)) for k, t in form.items()}  # type: ignore[misc]


def cast(model: Any, rounding: Rounding) -> None:
    """Round a model's tensors in place; codes stay as they are."""
    codes = {id(t) for _, m in base_modules(model) for e in encoded(m).values() for t in e.kept}
    for path, module in base_modules(model):
        for name in kept(module, codes):
            if name not in encoded(module):
                tensor, key = getattr(module, name), f"{path}.{name}".lstrip(".")
                tensor.data = rounded(key, tensor.data, rounding.dtype(key, tensor.dtype))


def configs(model: Any, folder: Path, usual: torch.dtype) -> None:
    """config.json of the plain model, and how it generates."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    config.architectures = [frozen_class(model).__name__]
    config.dtype = name_of(usual)
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
