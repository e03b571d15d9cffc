"""A model without storage: built from its config alone on the meta device, then given tensors that have a device and a
shape but no bytes, so that the very code of training runs over it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from featherweight.checkpoint.load import meant, read
from featherweight.core.anatomy import find_blocks
from featherweight.core.attach import attach
from featherweight.core.errors import InputError, Problem, did_you_mean
from featherweight.core.host import base_modules, hosts
from featherweight.core.method import Method
from featherweight.plan.live import ASSUMED
from featherweight.quant.quantized import Quantized
from featherweight.quant.recipe import Recipe
from featherweight.quant.skip import choose

CPU, META = torch.device("cpu"), torch.device("meta")


def config_of(source: Any) -> Any:
    """The transformers config of a config, a live model, a folder or file with config.json, a mapping, or a hub name.

    Raises InputError for an architecture that transformers does not know: its modules cannot be seen, so nothing is
    guessed.
    """
    import transformers

    if isinstance(source, transformers.PretrainedConfig):
        return source
    if isinstance(source, nn.Module):
        found = getattr(source, "config", None)
        if isinstance(found, transformers.PretrainedConfig):
            return found
        raise InputError(Problem("the model has no config to plan from", "model", "a transformers model",
                                 type(source).__name__))  # fmt: skip
    form = dict(source) if isinstance(source, Mapping) else read_config(source)
    if form is None:
        return transformers.AutoConfig.from_pretrained(os.fspath(source), trust_remote_code=False)
    where = "config" if isinstance(source, Mapping) else str(source)
    return from_form(form, where)


def read_config(source: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The JSON of a config.json, given as the file or its folder; None for what is no local path."""
    path = Path(source).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        if path.is_dir() or path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1:
            raise InputError(Problem("no config.json", str(source), fix="give a model's folder or its config.json"))
        return None
    try:
        form = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(Problem("not a JSON file", f"{file}:{getattr(error, 'lineno', 1)}", got=str(error))) from error
    if not isinstance(form, dict):
        raise InputError(Problem("not a model's config", str(file), "an object", type(form).__name__))
    return form


def from_form(form: dict[str, Any], where: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = str(form.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise InputError(
            Problem(
                "an architecture whose modules cannot be seen: neither parameters nor memory are known, and a guess "
                "from its width and depth could be wrong by a half",
                f"{where}: model_type",
                got=repr(kind),
                fix=did_you_mean(kind, CONFIG_MAPPING) or "give a config of an architecture that transformers knows",
            )
        )
    options = {k: v for k, v in form.items() if k != "model_type"}
    try:
        return AutoConfig.for_model(kind, **options)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise InputError(Problem("a config that its own architecture refuses", where,
                                 got=" ".join(str(error).split()))) from error  # fmt: skip


def built(config: Any, auto: str, dtype: torch.dtype, options: Mapping[str, Any]) -> nn.Module:
    """The model of a config for a task's Auto class, on the meta device. Raises InputError where they do not go
    together, or the config's numbers make no model."""
    import transformers

    kind = getattr(transformers, auto)
    if type(config) not in kind._model_mapping:
        raise InputError(Problem("this architecture has no model for the task", "task", auto, type(config).__name__))
    try:
        config = type(config).from_dict(config.to_dict() | dict(options))
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = 0  # training takes the tokenizer's
        with torch.device("meta"):
            model = kind.from_config(config, dtype=dtype)
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise InputError(Problem("the config's numbers make no model", "config",
                                 got=" ".join(str(error).split())[:300])) from error  # fmt: skip
    return model.eval()


class Decided(TorchDispatchMode):
    """Lists of whole numbers and flags keep their values where floats have none: which tokens, which ranks are used.

    What floats would decide is answered as in a trace.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == META and is_list(args[0]):
            return args[0].clone()
        answer = ASSUMED.get(func) if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        return func(*args, **kwargs) if answer is None else answer(*args, **kwargs)


def is_list(tensor: Tensor) -> bool:
    return tensor.dim() == 1 and not tensor.is_floating_point()


def adapted(
    model: nn.Module, method: Method, head: bool | str = "auto", over: Mapping[str, Any] | None = None
) -> nn.Module:
    """A meta model with the method attached, over the adapters in these folders."""
    with Decided():
        for name, folder in (over or {}).items():
            kind, own_head = meant(model, read(folder, name))
            attach(model, kind, name, head=own_head, train=False)
        return attach(model, method, head=head)


def fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Give every tensor of a meta model a device, in place; tied tensors stay tied."""
    made: dict[int, Tensor] = {}
    convert = mode.fake_tensor_converter.from_meta_and_device
    for _, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    bare = tensor.detach()
                    new = convert(mode, bare if bare.is_meta else bare.to("meta"), CPU)
                    made[id(tensor)] = (
                        nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
                    )
                held[name] = made[id(tensor)]


def blocks_of(model: nn.Module) -> list[nn.ModuleList]:
    """The outermost lists of blocks."""
    lists = {path.rsplit(".", 1)[0] for path, _ in find_blocks(model)}
    return [m for path, m in base_modules(model) if path in lists and isinstance(m, nn.ModuleList)]


def quantized(model: nn.Module, recipe: Recipe) -> None:
    """Quantize a meta model: every layer that `fw.quantize` takes gets packed tensors of its layout."""
    for place in choose(model, recipe.targets, recipe.skip, recipe.scheme).places:
        layout = place.codec(recipe.scheme).layout(tuple(place.weight.shape))
        packed = {name: torch.empty(dims, dtype=dtype, device="meta") for name, (dtype, dims) in layout.items()}
        place.put(recipe.scheme, packed)


def frozen_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor of the base, once: parameters, buffers and packed codes, adapters left out."""
    seen: set[int] = set()
    for _, module in base_modules(model):
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def frozen_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in frozen_tensors(model))


def adapter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters of adapters."""
    mine = {id(p): p for _, host in hosts(model) for a in host.adapters.values() for p in a.parameters()}
    return sum(p.numel() * p.element_size() for p in mine.values())


def largest_tensor(model: nn.Module) -> int:
    """Bytes of the largest tensor as a checkpoint holds it: what is there twice for a moment while it is read."""
    whole = [t.numel() * t.element_size() for t in frozen_tensors(model)]
    packed = [prod(m.shape) * m.dtype.itemsize for _, m in base_modules(model) if isinstance(m, Quantized)]
    return max([*whole, *packed], default=0)
