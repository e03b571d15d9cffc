"""`save`: an attached adapter as a folder that PEFT, and this library, can load."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, packed
from featherweight.checkpoint.files import write_adapter
from featherweight.checkpoint.fingerprint import fingerprint
from featherweight.checkpoint.peft.codec import Adapters
from featherweight.checkpoint.peft.common import base_name, brought, common, head_entries, head_paths, is_local
from featherweight.checkpoint.peft.names import regex
from featherweight.checkpoint.peft.table import for_method
from featherweight.checkpoint.record import Record, digest
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules, steady
from featherweight.core.method import Method
from featherweight.core.state import adapters, tensors_of
from featherweight.core.switch import Attached, switch_of
from featherweight.quant.recipe import recipes


def save(model: nn.Module, folder: str | os.PathLike[str], name: str | None = None, *, durable: bool = False) -> None:
    """Write the adapter `name` to `folder`: `adapter_config.json` and `adapter_model.safetensors`, in PEFT's format
    where PEFT has the method.

    Without a name the only adapter goes to the folder itself; of several, `default` goes there and each other one to
    `folder/NAME`, as peft lays them out. Every file is written beside its place and renamed over it; `durable=True`
    also waits until the disk has it (several times slower), as training does for what it keeps.
    Raises InputError for an unknown name, for values that are not finite and for a folder that cannot be written.
    """
    attached = switch_of(model).attached
    if not attached:
        raise InputError(Problem("nothing to save: the model has no adapters", fix="attach or load one first"))
    folder = Path(folder)
    if name is not None or len(attached) == 1:
        save_one(model, folder, name if name is not None else next(iter(attached)), durable)
        return
    for each in attached:
        save_one(model, folder if each == "default" else folder / each, each, durable)


def save_one(model: nn.Module, folder: Path, name: str, durable: bool) -> None:
    with steady():
        made = adapters(model, name)
        kept = in_use(model, name, made, tensors_of(made))
        config, method = config_of(model, name, made)
        tensors = packed(entries_of(model, name, made, kept), kept)
        metadata = record(model, name, folder, config, tensors, method).to_metadata()
    write_adapter(folder, config, tensors, metadata, durable)


def in_use(model: nn.Module, name: str, made: Adapters, kept: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What is saved for use: the adapter's state, or what its method exports in its place, and the head as it is."""
    attached, heads = switch_of(model).attached[name], head_paths(model, made)
    exported = attached.method.export(trunk(made, heads, attached))
    if exported is None:
        return kept
    apart = tuple(f"{path}." for path in heads) if attached.head else ()
    return exported | {k: t for k, t in kept.items() if k.startswith(apart)}


def config_of(model: nn.Module, name: str, made: Adapters) -> tuple[dict[str, Any], Method]:
    """The JSON of an attached adapter, and its method as it goes on record."""
    attached = switch_of(model).attached[name]
    heads = head_paths(model, made)
    method, codec = portable(attached.method.recorded(made), model), for_method(attached.method)
    own = codec.config(model, method, trunk(made, heads, attached))
    form = {"peft_type": codec.peft_type, **common(model, heads), **own}
    if form["modules_to_save"] is None and "modules_to_save" not in codec.fields:
        del form["modules_to_save"]  # peft does not know the field for every type
    return form, method


def entries_of(model: nn.Module, name: str, made: Adapters, kept: Mapping[str, Tensor]) -> list[Entry]:
    """The table of an attached adapter's tensors; `kept` is its state."""
    attached = switch_of(model).attached[name]
    heads = head_paths(model, made)
    codec = for_method(attached.method)
    own = codec.entries(model, trunk(made, heads, attached), kept)
    return [*own, *(head_entries(made, heads, kept, codec.head) if attached.head else [])]


def table(model: nn.Module, name: str) -> list[Entry]:
    """The table of an attached adapter's tensors: what its file holds, and where each goes."""
    made = adapters(model, name)
    return entries_of(model, name, made, tensors_of(made))


def trunk(made: Adapters, heads: Sequence[str], attached: Attached) -> Adapters:
    """The adapters without the head's, unless the method itself trains the head: then it is the method's to store."""
    return {path: a for path, a in made.items() if path not in heads} if attached.head else made


def portable(method: Method, model: nn.Module) -> Method:
    """The method with every predicate replaced by a regex that hits the same modules: predicates have no file form."""
    picked = {f.name: getattr(method, f.name) for f in fields(method) if callable(getattr(method, f.name))}
    modules = dict(base_modules(model)) if picked else {}
    hits = {key: regex([p for p, m in modules.items() if pick(p, m)], list(modules)) for key, pick in picked.items()}
    return replace(method, **hits) if hits else method


@cache
def release() -> str:
    return version("featherweight")


def record(
    model: nn.Module, name: str, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], method: Method
) -> Record:
    attached, task = switch_of(model).attached[name], getattr(model, "task", None)
    return Record(
        version=release(),
        method=method.to_dict(),
        head=attached.head,
        task=task.to_dict() if task is not None else None,
        base=fingerprint(model, brought(model, tensors), base_name(model) or ""),
        base_path=base_path(model, folder),
        seed=int(getattr(model, "new_seed", 0)),
        config=digest(config),
        quantize=[recipe.to_dict() for recipe in recipes(model)] or None,
    )


def base_path(model: nn.Module, folder: Path) -> str | None:
    """Where a local base lies, as seen from the adapter's folder: it holds wherever both are moved together."""
    name = str(getattr(model, "name_or_path", "") or "")
    return os.path.relpath(Path(name).resolve(), folder.resolve()) if name and is_local(name) else None
