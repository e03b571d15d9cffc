"""`save`: an attached adapter as a folder that PEFT, and this library, can load."""

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, packed
from featherweight.checkpoint.files import write_adapter
from featherweight.checkpoint.fingerprint import fingerprint
from featherweight.checkpoint.peft.common import base_name, brought, common, head_entries, head_paths, is_local
from featherweight.checkpoint.peft.names import regex
from featherweight.checkpoint.peft.table import for_method
from featherweight.checkpoint.record import Record, digest
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.state import adapters, state
from featherweight.core.switch import switch_of


def save(model: nn.Module, folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Write the adapter `name` to `folder`: `adapter_config.json` and `adapter_model.safetensors`, in PEFT's format
    where PEFT has the method.

    Without a name the only adapter goes to the folder itself; of several, `default` goes there and each other one to
    `folder/NAME`, as peft lays them out. Every file is written beside its place and renamed over it.
    Raises InputError for an unknown name, for values that are not finite and for a folder that cannot be written.
    """
    attached = switch_of(model).attached
    if not attached:
        raise InputError(Problem("nothing to save: the model has no adapters", fix="attach or load one first"))
    folder = Path(folder)
    if name is not None or len(attached) == 1:
        save_one(model, folder, name if name is not None else next(iter(attached)))
        return
    for each in attached:
        save_one(model, folder if each == "default" else folder / each, each)


def save_one(model: nn.Module, folder: Path, name: str) -> None:
    config, entries = plan(model, name)
    tensors = packed(entries, state(model, name))
    write_adapter(folder, config, tensors, record(model, name, folder, config, tensors).to_metadata())


def plan(model: nn.Module, name: str) -> tuple[dict[str, Any], list[Entry]]:
    """The JSON and the table of tensors of an attached adapter."""
    made, kept = adapters(model, name), state(model, name)
    attached = switch_of(model).attached[name]
    codec = for_method(attached.method)
    heads = head_paths(model, made)
    apart = heads if attached.head else []  # a head that the method itself trains is the method's to store
    trunk = {path: a for path, a in made.items() if path not in apart}
    own = codec.config(model, portable(attached.method, model), trunk)
    entries = [*codec.entries(model, trunk, kept), *head_entries(made, apart, kept)]
    return {"peft_type": codec.peft_type, **common(model, heads), **own}, entries


def portable(method: Method, model: nn.Module) -> Method:
    """The method with every predicate replaced by a regex that hits the same modules: predicates have no file form."""
    modules = dict(base_modules(model))
    picked = {f.name: getattr(method, f.name) for f in fields(method) if callable(getattr(method, f.name))}
    hits = {key: regex([p for p, m in modules.items() if pick(p, m)], list(modules)) for key, pick in picked.items()}
    return replace(method, **hits) if hits else method


def record(
    model: nn.Module, name: str, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Record:
    attached, task = switch_of(model).attached[name], getattr(model, "task", None)
    return Record(
        version=version("featherweight"),
        method=portable(attached.method, model).to_dict(),
        head=attached.head,
        task=task.to_dict() if task is not None else None,
        base=fingerprint(model, brought(model, tensors), base_name(model) or ""),
        base_path=base_path(model, folder),
        seed=int(getattr(model, "new_seed", 0)),
        config=digest(config),
    )


def base_path(model: nn.Module, folder: Path) -> str | None:
    """Where a local base lies, as seen from the adapter's folder: it holds wherever both are moved together."""
    name = str(getattr(model, "name_or_path", "") or "")
    return os.path.relpath(Path(name).resolve(), folder.resolve()) if name and is_local(name) else None
