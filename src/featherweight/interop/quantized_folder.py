"""A quantized model on disk: what config.json says of it, and what its tensors are held against.

    config.json         "quantization_config": {"quant_method": "featherweight", "format": 1,
                          "groups": [{"scheme": {"type": "nf4"}, "modules": {path: digest, …}}], "kept": [path, …]}
    model.safetensors   path.codes, path.absmax, … for each module; every other tensor under its own name

`kept` are the linear layers that stayed as they were. A digest is the CRC-32 of a module's packed tensors.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all
from featherweight.core.host import base_modules
from featherweight.core.noun import plain
from featherweight.core.site import kind_of
from featherweight.interop.stream import Stored
from featherweight.quant.each import codec
from featherweight.quant.place import slots
from featherweight.quant.quantized import Quantized
from featherweight.quant.scheme import Scheme

METHOD, FORMAT = "featherweight", 1
KEYS = ("quant_method", "format", "groups", "kept")
AGAIN = "quantize the model again with fw quantize, or copy the folder again"


@dataclass(frozen=True)
class Record:
    """`schemes`: path -> scheme; `digests`: path -> digest; `kept`: linear layers that stayed as they were."""

    schemes: dict[str, Scheme]
    digests: dict[str, str]
    kept: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        groups: dict[Scheme, dict[str, str]] = {}
        for path, scheme in self.schemes.items():
            groups.setdefault(scheme, {})[path] = self.digests[path]
        listed = [{"scheme": whole(scheme), "modules": modules} for scheme, modules in groups.items()]
        return {"quant_method": METHOD, "format": FORMAT, "groups": listed, "kept": list(self.kept)}


def whole(scheme: Scheme) -> dict[str, Any]:
    """A scheme's file form with its defaults: those may change between versions."""
    return scheme.to_dict() | {f.name: plain(f.name, getattr(scheme, f.name)) for f in fields(scheme)}


def record(model: nn.Module) -> Record | None:
    """What a live model says of itself, None where nothing in it is quantized."""
    held = {path: m for path, m in base_modules(model) if isinstance(m, Quantized)}
    if not held:
        return None
    kept = [p for p, m in base_modules(model) if kind_of(m) == "linear" and p not in held]
    return Record({p: m.scheme for p, m in held.items()}, {p: digest(m.packed) for p, m in held.items()}, tuple(kept))


def digest(packed: Mapping[str, Tensor]) -> str:
    """CRC-32 over the bytes of packed tensors, by name."""
    found = 0
    for name in sorted(packed):
        found = zlib.crc32(packed[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def from_dict(form: Mapping[str, Any], where: str) -> Record:
    """The record of a config.json. Raises one InputError over all that cannot be read."""
    if form.get("format") != FORMAT:
        raise InputError(Problem("a quantized model of another version", f"{where}:format", str(FORMAT),
                                 repr(form.get("format")), f"update featherweight, or {AGAIN}"))  # fmt: skip
    problems = [Problem("unknown key", f"{where}:{k}", fix=did_you_mean(k, KEYS)) for k in form if k not in KEYS]
    schemes: dict[str, Scheme] = {}
    digests: dict[str, str] = {}
    for i, group in enumerate(form.get("groups") or [{}]):
        here = f"{where}:groups[{i}]"
        try:
            scheme = Scheme.from_dict(group["scheme"], f"{here}.scheme")
            twice = [p for p in group["modules"] if p in schemes]
            problems += [Problem("in two groups", f"{here}.modules.{p}") for p in twice]
            schemes |= dict.fromkeys(group["modules"], scheme)
            digests |= {str(p): str(d) for p, d in group["modules"].items()}
        except InputError as error:
            problems += error.problems
        except (KeyError, TypeError, AttributeError) as error:
            problems.append(Problem("not a group of quantized modules", here, "scheme and modules", str(error), AGAIN))
    raise_all(problems)
    return Record(schemes, digests, tuple(form.get("kept") or ()))


def located(model: nn.Module, found: Record, where: str) -> dict[str, str]:
    """path in the record -> path in the model: a trunk's file fits a model with a head, and the other way round.

    Raises InputError for modules that the model lacks or that are no linear layers there.
    """
    modules = slots(model)
    prefix = f"{getattr(model, 'base_model_prefix', '') or '-'}."
    places = {p: next((n for n in (p, prefix + p, p.removeprefix(prefix)) if n in modules), "") for p in found.schemes}
    raise_all(
        Problem("a quantized layer that the model lacks", f"{where}:{p}", fix="is config.json that of another model?")
        for p, n in places.items()
        if not n
    )
    return places


def held_against(found: Record, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored]) -> None:
    """Hold a file against the layouts of its schemes; `shapes`: path in the record -> (out, in), or
    (experts, out, in).

    Raises one InputError over all missing, extra, misshapen and wrongly typed tensors.
    """
    wanted = {
        f"{p}.{n}": spec for p, s in found.schemes.items() for n, spec in codec(s, shapes[p]).layout(shapes[p]).items()
    }
    raise_all(misfits(found, wanted, stored))


def misfits(
    found: Record, wanted: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], stored: Mapping[str, Stored]
) -> Iterator[Problem]:
    for key, (dtype, shape) in wanted.items():
        if key not in stored:
            yield Problem("missing tensor of a quantized layer", key, expected=spec(dtype, shape), fix=AGAIN)
        elif (stored[key].dtype, stored[key].shape) != (dtype, shape):
            got = spec(stored[key].dtype, stored[key].shape)
            yield Problem("not what its scheme stores", key, spec(dtype, shape), got, AGAIN)
    for key in stored:
        path, _, name = key.rpartition(".")
        if path in found.schemes and key not in wanted and name != "bias":
            yield Problem(
                "extra tensor of a quantized layer", key, fix=f"{found.schemes[path]!r} has none of this name"
            )


def spec(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"


def damaged(modules: Iterable[tuple[str, Any, str]]) -> Iterator[Problem]:
    """What loaded modules (path, module, digest on record) say of corrupted bytes."""
    for path, module, kept in modules:
        bad = [n for n, t in module.packed.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if bad:
            yield Problem("scales that are not finite", f"{path}.{bad[0]}", fix=AGAIN)
        elif kept and digest(module.packed) != kept:  # other makers' files have none
            yield Problem("corrupted codes", path, f"digest {kept}", digest(module.packed), AGAIN)
