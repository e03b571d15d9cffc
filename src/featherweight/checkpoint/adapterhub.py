"""AdapterHub's bottleneck folders (the library `adapters`), both ways: `adapter_config.json` and
`adapter.safetensors`.

    bert.encoder.layer.0.attention.output.adapters.NAME.adapter_down.0.weight     attention; the module has its own norm
    transformer.h.0.output_adapters.adapters.NAME.adapter_up.weight               feed-forward; a new child of the block
    bert.shared_parameters.NAME.phm_rule                                          a Compacter's shared rule

Houlsby, Pfeiffer, parallel adapters and Compacter are expressed; a config that asks for anything else is refused field
by field. Task heads lie in files of their own there (`head_config.json`) and are not read.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.checkpoint.adapterhub_config import VERSION, config_of, method_of
from featherweight.checkpoint.entry import Entry, packed, same, unpacked
from featherweight.checkpoint.files import CONFIG, atomic, json_file, present, read_json, read_tensors, tensor_file
from featherweight.checkpoint.load import quiet_chance, undone
from featherweight.core.attach import attach
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules, frozen_class
from featherweight.core.places import Plan
from featherweight.core.site import is_norm
from featherweight.core.state import adapters, load_state, state
from featherweight.core.switch import switch_of
from featherweight.methods.bottleneck import Bottleneck

WEIGHTS = "adapter.safetensors"
HEAD = "head_config.json"
PARTS = {"down": "adapter_down.0", "up": "adapter_up"}

log = logging.getLogger("featherweight")


def holds(folder: Path) -> bool:
    """Whether a folder's config is AdapterHub's."""
    form = read_json(folder / CONFIG)
    return "peft_type" not in form and isinstance(form.get("config"), dict) and "name" in form


def load(
    model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *, train: bool = False, stack: bool = False
) -> nn.Module:
    """Load an AdapterHub folder onto `model`, as `fw.load` does by itself. Raises one InputError over everything that
    cannot be expressed or does not fit; the model is then as it was.
    """
    folder = Path(folder)
    form = read_json(folder / CONFIG)
    method = method_of(form, str(folder / CONFIG))
    if not (folder / WEIGHTS).is_file() and (folder / "pytorch_adapter.bin").is_file():
        fix = "save it again there: model.save_adapter(FOLDER, NAME, use_safetensors=True)"
        raise InputError(
            Problem("a pickle, which is never read", str(folder / "pytorch_adapter.bin"), WEIGHTS, fix=fix)
        )
    present(folder / WEIGHTS)
    if (folder / HEAD).is_file():
        log.warning("%s: the task's head is not read", folder / HEAD)
    tensors, _ = read_tensors(folder / WEIGHTS)
    with undone(model, name), quiet_chance(model):
        attach(model, method, name, head=False, stack=stack, train=train)
        found = [e._replace(key=trunk(model, e.key)) for e in entries(model, name, str(form["name"]))]
        load_state(model, name, unpacked(found, {trunk(model, k): t for k, t in tensors.items()}, WEIGHTS))
    return model


def save(model: nn.Module, folder: str | os.PathLike[str], name: str = "default") -> None:
    """Write the adapter `name` so that `adapters` reads it: `model.load_adapter(FOLDER, use_safetensors=True)`.

    Raises InputError for a method or option that AdapterHub cannot express. A task head is left out, with a warning.
    """
    made = adapters(model, name)
    attached = switch_of(model).attached[name]
    width = next((a.width for a in made.values() if isinstance(a, Bottleneck)), 0)
    form = config_of(attached.method, width, f"adapter {name!r}")
    if getattr(attached.method, "reads", "residual") == "input" and not all(
        f.norm for f in Plan(model).flows().values()
    ):
        what = "AdapterHub's parallel adapters read the residual in front of the norm"
        raise InputError(
            Problem(what, f"adapter {name!r}", 'reads="residual"', repr(attached.method), "fw.save keeps it")
        )
    if attached.head:
        log.warning("the task's head is left out: AdapterHub keeps heads in files of their own")
    config: Any = getattr(model, "config", None)
    about = {
        "config": form,
        "hidden_size": width,
        "model_class": frozen_class(model).__name__,
        "model_name": str(getattr(model, "name_or_path", "") or ""),
        "model_type": str(getattr(config, "model_type", "")),
        "name": name,
        "version": f"adapters.{VERSION}",
    }
    folder = Path(folder)
    tensors = packed(entries(model, name, name), state(model, name))
    atomic(tensor_file(folder / WEIGHTS, tensors, {}) | json_file(folder / CONFIG, about), durable=True)


def trunk(model: nn.Module, key: str) -> str:
    """A key without the name that a model with a head has for its trunk (`bert.`)."""
    prefix = getattr(model, "base_model_prefix", "")
    return key.removeprefix(f"{prefix}.") if prefix else key


def entries(model: nn.Module, name: str, theirs: str) -> list[Entry]:
    """The table of tensors of an adapter that is called `theirs` in the file."""
    method: Any = switch_of(model).attached[name].method
    kept, found = state(model, name), []
    behind, blocks = homes(model)
    for path, adapter in adapters(model, name).items():
        if isinstance(adapter, Bottleneck):
            home = f"{behind.get(path, blocks[adapter.block])}.adapters.{theirs}"
            own = {k: t for k, t in kept.items() if k.startswith(f"{path}.")}
            found += [same(key_of(k[len(path) + 1 :], home), k, tuple(t.shape)) for k, t in own.items()]
    if getattr(method, "shared_rule", False):
        at = inner(model, f"shared_parameters.{theirs}.phm_rule")
        found = [e._replace(key=at) if e.key.endswith(".phm_rule") else e for e in found]
    return found


def key_of(part: str, home: str) -> str:
    """`down.weight` -> adapter_down.0.weight."""
    half, _, leaf = part.partition(".")
    if half == "scale":
        return f"{home}.scaling"
    return f"{home}.{PARTS[half]}.{leaf}"


def inner(model: nn.Module, key: str) -> str:
    """A key of the trunk, by its name in this model."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}.{key}" if prefix and hasattr(model, prefix) else key


def homes(model: nn.Module) -> tuple[dict[str, str], dict[int, str]]:
    """Where AdapterHub keeps what sits behind a linear layer, by that layer's path, and by block what sits behind its
    feed-forward.
    """
    plan = Plan(model)
    modules = dict(base_modules(model))
    behind: dict[str, str] = {}
    for place in plan.attention(cross=True):
        first = not any(p.startswith(f"{plan.there.blocks[place.block][0]}.") for p in behind)
        kind = "attention_adapters" if first else "cross_attention_adapters"
        behind[place.path] = home(modules, plan.there.blocks[place.block][0], place.path, kind)
    blocks: dict[int, str] = {}
    for place in plan.feedforward():
        blocks[place.block] = home(modules, plan.there.blocks[place.block][0], place.path, "output_adapters")
    return behind | {p.path: blocks[p.block] for p in plan.feedforward()}, blocks


def home(modules: Mapping[str, nn.Module], block: str, path: str, kind: str) -> str:
    """The module around a linear layer that has a norm of its own (BERT, T5), else a child `kind` of the block."""
    while (path := path.rpartition(".")[0]) != block:
        if any(is_norm(m) for m in modules[path].children()):
            return path
    return f"{block}.{kind}"
