"""An adapter's tensors by name: what is saved, and a load that is strict in both directions.

<path of host>.<parameter>             model.layers.0.self_attn.q_proj.lora_A.weight
<path of host>.<slice>.<parameter>     transformer.h.0.attn.c_attn.query.lora_A.weight   (whole: all of a Conv1D)
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all
from featherweight.core.host import hosts
from featherweight.core.part import Parts
from featherweight.core.switch import refresh, switch_of


def adapters(model: nn.Module, name: str) -> dict[str, Adapter]:
    """path of the host -> the adapter called `name` on it."""
    state = switch_of(model)
    if name not in state.attached:
        raise InputError(Problem("no adapter of this name", got=repr(name), fix=did_you_mean(name, state.attached)))
    held = ((path, host.adapters._modules) for path, host in hosts(model))
    return {path: there[name] for path, there in held if name in there}


def live(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The adapter's own tensors (not copies) by key, each tensor once."""
    return tensors_of(adapters(model, name))


def tensors_of(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """The own tensors of adapters by path."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, adapter in adapters.items():
        own = adapter.of if isinstance(adapter, Parts) else adapter
        for key, tensor in saved(own):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{path}.{key}" if path else key] = tensor
    return found


def saved(module: nn.Module, prefix: str = "") -> list[tuple[str, Tensor]]:
    """What `state_dict` lists, in its order, at a fifth of its time."""
    found: list[tuple[str, Tensor]] = [(prefix + name, p) for name, p in module._parameters.items() if p is not None]
    if module._buffers:
        passing = module._non_persistent_buffers_set
        found += [(prefix + name, b) for name, b in module._buffers.items() if b is not None and name not in passing]
    for name, child in module._modules.items():
        if child is not None and (child._parameters or child._buffers or child._modules):
            found += saved(child, f"{prefix}{name}.")
    return found


def state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """A detached copy-free snapshot: key -> tensor, in the model's order."""
    return {key: tensor.detach() for key, tensor in live(model, name).items()}


def load_state(model: nn.Module, name: str, tensors: Mapping[str, Tensor], give: bool = False) -> None:
    """Copy tensors into an adapter; missing, extra and misshapen ones are listed, and then nothing is copied.

    `give`: the tensors are nobody else's, and the adapter may keep them rather than copies.
    """
    made = adapters(model, name)
    take(model, made, tensors_of(made), tensors, give)


def take(
    model: nn.Module, made: Mapping[str, Adapter], own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], give: bool
) -> None:
    """`load_state` for who has the adapters by path, and their own tensors, already."""
    free = elastic(made)
    missing = [k for k in own if k not in tensors]
    extra = [k for k in tensors if k not in own]
    problems = [Problem("missing tensor", k, expected=shape(own[k]), fix=near(k, extra)) for k in missing]
    problems += [Problem("unexpected tensor", k, got=shape(tensors[k]), fix=near(k, missing)) for k in extra]
    problems += [
        Problem("wrong shape", k, expected=shape(own[k]), got=shape(t))
        for k, t in tensors.items()
        if k in own and own[k].shape != t.shape and not (k in free and t.dim() == 1)
    ]
    raise_all(problems)
    raise_all(p for prefix, a in single(made) for p in a.misfits(prefix, tensors))
    with torch.no_grad():
        for key, tensor in tensors.items():
            if give and takes(own[key], tensor):
                own[key].data = tensor
            elif own[key].shape == tensor.shape:
                own[key].copy_(tensor)
            else:
                own[key].data = tensor.detach().clone().to(own[key])
    if free:
        refresh(model)


def takes(own: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor may take the place of an adapter's own: alike, whole, and alone in its memory."""
    return (
        own.shape == tensor.shape
        and own.dtype is tensor.dtype
        and own.is_cpu
        and tensor.is_cpu
        and own.stride() == tensor.stride()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    )


def single(adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, Adapter]]:
    """(prefix of its keys, adapter), those on slices one by one."""
    for path, adapter in adapters.items():
        stem = f"{path}." if path else ""
        if isinstance(adapter, Parts):
            yield from ((f"{stem}{role}.", a) for role, a in adapter.of.items())  # type: ignore[misc]
        else:
            yield stem, adapter


def elastic(adapters: Mapping[str, Adapter]) -> set[str]:
    """The keys of 1-d tensors whose length a file decides."""
    return {f"{prefix}{k}" for prefix, a in single(adapters) if a.elastic
            for k in a.state_dict() if k.rpartition(".")[2] in a.elastic}  # fmt: skip


def shape(t: Tensor) -> str:
    return f"{tuple(t.shape)}"


def near(key: str, others: list[str]) -> str:
    close = get_close_matches(key, others, n=1, cutoff=0.8)
    return f"misspelt {close[0]!r}?" if close else ""
