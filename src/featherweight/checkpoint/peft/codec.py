"""What a file needs to know of a method: its PEFT type, its JSON fields, its tensors, and the way back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry
from featherweight.checkpoint.peft.names import PREFIX
from featherweight.core.adapter import Adapter
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Method

Adapters = Mapping[str, Adapter]  # path of the host -> its adapter, heads left out


@dataclass(frozen=True)
class Codec:
    """`fields`: the JSON keys that PEFT knows for this type beside the shared ones.

    `config(model, method, adapters)` gives the type's own fields, `entries(model, adapters, state)` its tensors,
    `method(model, config, where)` the method that a foreign config means. `fits`, where given, says which forms of the
    method PEFT can express; the others are stored in our own type. `head` is the prefix of a head's keys, and
    `used(config, tensors)` what of a foreign file its own library uses.
    """

    peft_type: str
    fields: tuple[str, ...]
    config: Callable[[nn.Module, Method, Adapters], dict[str, Any]]
    entries: Callable[[nn.Module, Adapters, Mapping[str, Tensor]], list[Entry]]
    method: Callable[[nn.Module, Mapping[str, Any], str], Method]
    fits: Callable[[Any], bool] | None = None
    head: str = PREFIX
    used: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None


def typed(config: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> None:
    """Raise one InputError over all fields of a wrong JSON type; absent ones stand for their default."""
    raise_all(
        Problem("wrong type", f"{where}:{key}", expected=" or ".join(k.__name__ for k in kind), got=repr(config[key]))
        for key, kind in kinds.items()
        if config.get(key) is not None
        and (not isinstance(config[key], kind) or (isinstance(config[key], bool) and bool not in kind))
    )


def refused(config: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Raise one InputError over all fields that ask for what cannot be expressed here."""
    raise_all(
        Problem(
            "not supported: the adapter computes something else than the method here",
            f"{where}:{key}",
            got=repr(config[key]),
            fix="merge it into its base with peft (merge_and_unload) and load the merged model",
        )
        for key in keys
        if config.get(key)
    )
