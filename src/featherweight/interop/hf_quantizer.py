"""transformers' loading with weights that become codes as they are read, and its saving of models that hold codes.

    from a float checkpoint    each weight in turn: read -> encode -> codes
    from a quantized folder    modules of codes without memory first, then the file's tensors into them
    save_pretrained            path.codes, path.absmax, …, and the record in config.json

Registered with transformers under "featherweight": where this module is imported, its own from_pretrained reads
quantized folders too.
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightRenaming, rename_source_key
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import base_modules
from featherweight.interop import quantized_folder as folder
from featherweight.interop.filed import Filed, whole
from featherweight.interop.stream import Stored
from featherweight.quant.each import Each
from featherweight.quant.place import Place, slots
from featherweight.quant.quantize import problems, rest, settled, unsound
from featherweight.quant.quantized import Quantized, dequantize
from featherweight.quant.recipe import Recipe
from featherweight.quant.report import Layer, Report, measured, together
from featherweight.quant.scheme import Packed, Scheme
from featherweight.quant.skip import Skipped, choose, recounted


@dataclass(eq=False)
class Job:
    """One load: what is read, how it is encoded, and what came of it."""

    where: str = "config.json"
    stored: Mapping[str, Stored] | None = None
    recipes: tuple[Recipe, ...] = ()
    places: dict[str, tuple[Place, Scheme]] = field(default_factory=dict)  # name of a weight -> where it goes
    skipped: tuple[Skipped, ...] = ()
    layers: dict[str, Layer] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    restored: list[tuple[str, Any, str]] = field(default_factory=list)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)  # of the encoded weights, in the file


JOB: ContextVar[Job | None] = ContextVar("job", default=None)


@register_quantization_config(folder.METHOD)
class Config(QuantizationConfigMixin):
    """`quantization_config` of config.json."""

    def __init__(self, **form: Any):
        self.quant_method: Any = folder.METHOD
        self.form = {"quant_method": folder.METHOD} | form

    def to_dict(self) -> dict[str, Any]:
        return dict(self.form)


@register_quantizer(folder.METHOD)
class Quantizer(HfQuantizer):
    """What transformers asks while it loads and saves. `pre_quantized`: the checkpoint holds codes."""

    def __init__(self, quantization_config: Config, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.job = JOB.get() or Job()

    def preprocess_model(self, model: Any, dtype: Any = None, **kwargs: Any) -> None:
        """The model has no memory yet: find where codes go."""
        (prepare_restored if self.pre_quantized else prepare_encoded)(self, model)
        self.notes = model.register_state_dict_post_hook(without_notes)

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        """Nothing: `preprocess_model` is replaced whole."""

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        return param_name in self.job.places

    def get_quantize_ops(self) -> "Encode":
        return Encode(self.job)

    def postprocess_model(self, model: Any, **_: Any) -> None:
        """Every tensor has been read: raise what was wrong, keep the report and the record."""
        self.notes.remove()
        vars(model).pop("_keep_in_fp32_modules_strict", None)
        job, self.job = self.job, Job()
        raise_all([*job.problems, *folder.damaged(job.restored)])
        if job.layers:
            made = tuple(job.layers[p.path] for p, _ in job.places.values())
            settled(model, Report(job.recipes[0].scheme, made, recounted(model, job.skipped), rest(model)))
        settle(model)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """Called by save_pretrained before it writes: the record is that of the model as it is now."""
        found = folder.record(model)
        if found is None:
            vars(model.config).pop("quantization_config", None)
            return None, {}
        model.config.quantization_config = Config(**found.to_dict())
        state = model.state_dict()
        without_notes(model, state, "", {})
        return state, {}

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return dequantize(model)


class Encode(ConversionOps):
    """A weight of the checkpoint becomes the codes of its module; nothing is left for transformers to set."""

    def __init__(self, job: Job):
        self.job = job

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, list[Tensor]]:
        for name, tensor in input_dict.items():
            encode(self.job, name, tensor[0] if isinstance(tensor, list) else tensor)
            kwargs["missing_keys"].discard(name)
        return {}


def encode(job: Job, name: str, W: Tensor) -> None:
    """Put the codes of W in place of a weight without memory; what is wrong with W is noted and goes on."""
    place, scheme = job.places[name]
    job.dtypes[name] = W.source.stored if isinstance(W, Filed) else W.dtype
    if W.shape != place.own.shape:
        job.problems.append(Problem("misshapen tensor", name, str(tuple(place.own.shape)), str(tuple(W.shape))))
        return
    try:
        packed, layer = one(place, scheme, W) if place.name is None else many(place, scheme, W)
    except InputError as error:
        job.problems += error.problems
        return
    job.layers[place.path] = replace(layer, before=W.numel() * place.own.dtype.itemsize)
    for made in (place.module, place.put(scheme, packed)):
        made._is_hf_initialized = True


def one(place: Place, scheme: Scheme, W: Tensor) -> tuple[Packed, Layer]:
    """Codes and report of a matrix."""
    W = sound(place.key, W)
    W = (W.mT if place.flip else W).contiguous()
    packed = scheme.encode(W)
    return packed, measured(place, W, scheme, packed, 0)


def many(place: Place, scheme: Scheme, W: Tensor) -> tuple[Packed, Layer]:
    """Codes and report of a stack; one of its matrices is in memory at a time where it stays in its file."""
    parts: list[Layer] = []
    read = (sound(f"{place.key}[{e}]", W[e]) for e in range(len(W)))
    packed = Each(scheme).gathered(
        len(W), ((M.mT if place.flip else M).contiguous() for M in read),
        lambda M, codes: parts.append(measured(place, M, scheme, codes, 0)),
    )  # fmt: skip
    return packed, together(replace(parts[0], shape=(len(W), *parts[0].shape)), parts)


def sound(name: str, W: Tensor) -> Tensor:
    """The tensor in memory. Raises InputError for one that cannot be encoded."""
    W = whole(W)
    problem = unsound(name, W)
    raise_all([problem] if problem else [])
    return W


def prepare_encoded(quantizer: Quantizer, model: Any) -> None:
    """Choose what is encoded. Weights reach the encoder in fp32, whatever the model's dtype: codes are the file's."""
    job = quantizer.job
    for recipe in job.recipes:
        choice = choose(model, recipe.targets, recipe.skip, recipe.scheme)
        raise_all(p for p in problems(choice, recipe.scheme, None) if "meta device" not in p.what)
        job.places |= {p.key: (p, recipe.scheme) for p in choice.places}
        job.skipped = choice.skipped
    strict = set(model._keep_in_fp32_modules_strict or ())
    model._keep_in_fp32_modules_strict = strict | {f"^{re.escape(name)}$" for name in job.places}


def prepare_restored(quantizer: Quantizer, model: Any) -> None:
    """Modules of codes, still without memory, where the record has them; the file is held against their layouts."""
    job = quantizer.job
    where = f"{job.where}:quantization_config"
    found = folder.from_dict(quantizer.quantization_config.to_dict(), where)
    places = folder.located(model, found, where)
    there = slots(model)
    goes = {path: Place(place, there[place][0], "", None, there[place][1]) for path, place in places.items()}
    shapes = {path: tuple(place.weight.shape) for path, place in goes.items()}
    if job.stored is not None:
        folder.held_against(found, shapes, named(model, job.stored))
    for path, place in goes.items():
        scheme = found.schemes[path]
        layout = place.codec(scheme).layout(shapes[path])
        empty = {name: torch.empty(dims, dtype=dtype, device="meta") for name, (dtype, dims) in layout.items()}
        made = place.put(scheme, empty)
        place.module._is_hf_initialized = made._is_hf_initialized = True
        job.restored.append((places[path], made, found.digests[path]))


def named(model: Any, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """A file's tensors under the names that the model has for them, where transformers renames what it reads."""
    renamings = [c for c in get_model_conversion_mapping(model) if isinstance(c, WeightRenaming)]
    return {rename_source_key(key, renamings, [])[0]: tensor for key, tensor in stored.items()}


def without_notes(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Take the notes of quantized modules (path.scheme) out of a state dict: config.json has the record."""
    for path, module in base_modules(model):
        if isinstance(module, Quantized):
            state.pop(f"{prefix}{path}.scheme", None)


def settle(model: nn.Module) -> None:
    """After quantizing: every transformers model in `model` that holds codes is saved as such."""
    from featherweight.interop.root import pretrained

    for module in pretrained(model):
        if any(isinstance(m, Quantized) for _, m in base_modules(module)):
            module.hf_quantizer = Quantizer(Config(format=folder.FORMAT), pre_quantized=True)  # type: ignore[assignment]
            for name in ("is_quantized", "quantization_method"):
                vars(module).pop(name, None)
        else:
            vars(module).pop("hf_quantizer", None)
