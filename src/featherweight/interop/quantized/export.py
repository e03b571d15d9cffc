"""`save_quantized`: a quantized model as a folder that other libraries load.

    "featherweight"       our own, as `model.save_pretrained` writes it: every scheme
    "bitsandbytes"        NF4, FP4 (bitsandbytes' table) and LLMInt8, by its state dicts' layout
    "gptq_v2", "gptq"     GPTQ, zero points as they are, or less one

Codes and scales are the very same numbers (GPTQ files have scales in float16), so that outputs are, up to rounding.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.core.host import Host, base_modules
from featherweight.core.site import kind_of
from featherweight.interop.quantized import bnb, gptq
from featherweight.interop.quantized.bnb4 import write4
from featherweight.interop.quantized.bnb8 import Weight8, write8
from featherweight.quant.gptq import GPTQ
from featherweight.quant.llmint8 import LLMInt8
from featherweight.quant.place import tensor
from featherweight.quant.quantized import Quantized
from featherweight.quant.scheme import Packed, Scheme

OWN = "featherweight"


@dataclass(frozen=True)
class Format:
    """How a maker's folder is written: what is wrong with a scheme, one weight's tensors, the config."""

    unsayable: Callable[[Scheme, str], Iterator[Problem]]
    tensors: Callable[[str, Any], Packed]  # path, quantized module
    config: Callable[[list[Any], list[str]], dict[str, Any]]  # quantized modules, paths of linear layers in float
    beside: str = ""  # a file that repeats the config


def save_quantized(model: nn.Module, folder: str | os.PathLike[str], format: str = OWN) -> Path:  # noqa: A002
    """Write a quantized model, and its tokenizer, to `folder`; gives the folder.

    format: "featherweight", "bitsandbytes", "gptq_v2" or "gptq".
    Raises one InputError over all that the format cannot hold, before anything is written.
    """
    from transformers import PreTrainedModel

    from featherweight.interop.transformers import quiet

    raise_all(obstacles(format, None, "format"))
    if not isinstance(model, PreTrainedModel):
        raise InputError(Problem("not a model of transformers", "model", got=type(model).__name__))
    held = {path: m for path, m in base_modules(model) if isinstance(m, Quantized)}
    raise_all(unready(model, held))
    whole: Any = model
    with quiet():
        if format == OWN:
            whole.save_pretrained(folder)
        else:
            write(whole, folder, FORMATS[format], held)
    if getattr(model, "tokenizer", None) is not None:
        whole.tokenizer.save_pretrained(folder)
    return Path(folder)


def obstacles(format: str, scheme: Scheme | None, where: str) -> Iterator[Problem]:  # noqa: A002
    """Why no model in this scheme can be written so: no such format, or none for the scheme."""
    if format not in (OWN, *FORMATS):
        yield Problem("unknown format", where, got=repr(format), fix=did_you_mean(format, (OWN, *FORMATS)))
    elif scheme is not None and format != OWN:
        yield from FORMATS[format].unsayable(scheme, where)


def unready(model: nn.Module, held: Mapping[str, Any]) -> Iterator[Problem]:
    if any(isinstance(m, Host) for _, m in base_modules(model)):
        yield Problem("adapters are attached", "model", fix="save them with fw.save; detach or merge them first")
    if not held:
        yield Problem("nothing in the model is quantized", "model", fix="fw.quantize(model, fw.NF4()) first")


def write(model: Any, folder: str | os.PathLike[str], form: Format, held: Mapping[str, Any]) -> None:
    """save_pretrained with the tensors and the config of another maker."""
    from featherweight.interop.quantized.saving import saving

    raise_all(refused(form, held))
    kept = [p for p, m in base_modules(model) if kind_of(m) == "linear" and p not in held]
    config = form.config(list(held.values()), kept)
    raise_all(ambiguous(held, kept))
    tensors: Packed = {}
    problems: list[Problem] = []
    for path, module in held.items():
        try:
            tensors |= form.tensors(path, module)
        except InputError as error:
            problems += error.problems
    raise_all(problems)
    with saving(model, held, tensors, config):
        model.save_pretrained(folder)
    if form.beside:
        Path(folder, form.beside).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def refused(form: Format, held: Mapping[str, Any]) -> Iterator[Problem]:
    for path, module in held.items():
        if not isinstance(module, nn.Linear) and kind_of(module) != "linear":
            fix = f"leave it out (--skip {tensor(path)}, or experts), or keep the model in our own format"
            yield Problem("not a linear layer", path, "linear layers alone", type(module).__name__, fix)
        yield from form.unsayable(module.scheme, path)


def ambiguous(held: Mapping[str, Any], kept: list[str]) -> Iterator[Problem]:
    """Layers that a list of what to leave alone would name by mistake: it goes by starts and ends of paths."""
    for path in held:
        hit = [k for k in kept if path.endswith(k) or re.match(rf"(?:{k})(?:(?<=\.)|(?=\.|$))", path)]
        if hit:
            fix = f"quantize {listed(hit)} too"
            yield Problem("cannot be told from a layer in float", path, got=listed(hit), fix=fix)


def bnb_tensors(path: str, module: Any) -> dict[str, Tensor]:
    packed = module.packed
    if isinstance(module.scheme, LLMInt8):
        return write8(Weight8(packed["codes"], packed["absmax"]), path)
    return write4(bnb.weight4(module.scheme, packed, module.shape, module.dtype), path)


def bnb_config(modules: list[Any], kept: list[str]) -> dict[str, Any]:
    return bnb.config_of([m.scheme for m in modules], kept, modules[0].dtype)


def gptq_format(form: str) -> Format:
    """`form` "gptq" or "gptq_v2"."""

    def tensors(path: str, module: Any) -> dict[str, Tensor]:
        return gptq.write_gptq(module.scheme, module.packed, module.shape, path, form)

    def config(modules: list[Any], kept: list[str]) -> dict[str, Any]:
        said = gptq.config_of([m.scheme for m in modules], form)
        left: dict[str, Any] = {f"-:^{re.escape(path)}$": {} for path in kept}  # GPTQModel's and vLLM's way to say so
        return said | {"dynamic": left} if left else said

    return Format(not_gptq, tensors, config, "quantize_config.json")


def not_gptq(scheme: Scheme, where: str) -> Iterator[Problem]:
    if not isinstance(scheme, GPTQ):
        yield Problem("GPTQ files have no such format", where, "GPTQ", repr(scheme), "fw.quantize(model, fw.GPTQ(...))")


FORMATS = {
    "bitsandbytes": Format(bnb.unsayable, bnb_tensors, bnb_config),
    "gptq_v2": gptq_format("gptq_v2"),
    "gptq": gptq_format("gptq"),
}
