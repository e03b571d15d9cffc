"""A model loaded tensor by tensor, its weights encoded on the way or read as codes: the float model never exists.

peak memory  ≈  the quantized model  +  the tensor at hand, in fp32, and what encoding it takes
"""

import os
from typing import Any

import torch

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.interop.stream import checkpoint
from featherweight.quant.recipe import Recipe


def config_of(path: str | os.PathLike[str], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The folder's config with the options that are its fields, and the other options."""
    import transformers

    return transformers.AutoConfig.from_pretrained(
        os.fspath(path), trust_remote_code=False, return_unused_kwargs=True, **options
    )


def own(config: Any) -> dict[str, Any] | None:
    """The record of a folder that is quantized by us, None for any other."""
    from featherweight.interop.quantized_folder import METHOD

    found = getattr(config, "quantization_config", None)
    return found if isinstance(found, dict) and found.get("quant_method") == METHOD else None


def holds_codes(config: Any) -> bool:
    """Whether a folder is quantized in a way that is read here: by us, or as one of `quantized.foreign`."""
    from featherweight.interop.quantized.foreign import foreign

    return own(config) is not None or foreign(getattr(config, "quantization_config", None))


def check(path: str | os.PathLike[str], config: Any, recipes: tuple[Recipe, ...]) -> None:
    """Raise InputError where the checkpoint is quantized in another way than is asked for, or a scheme needs data."""
    held = getattr(config, "quantization_config", None)
    raise_all(
        Problem("the scheme is calibrated on data", "quantize", got=repr(r.scheme),
                fix=f"fw quantize {path} --scheme {r.scheme.to_dict()['type']} --calibration FILE --output DIR first")
        for r in recipes if r.scheme.calibrated and held is None
    )  # fmt: skip
    if held is None or not recipes:
        return
    record = own(config)
    if record is None:
        got = held.get("quant_method") if isinstance(held, dict) else type(held).__name__
        raise InputError(Problem("the checkpoint is quantized already", str(path), got=repr(got),
                                 fix="leave quantize out, or load the unquantized model"))  # fmt: skip
    from featherweight.interop.quantized_folder import from_dict

    there = set(from_dict(record, f"{path}/config.json:quantization_config").schemes.values())
    asked = {r.scheme for r in recipes}
    if there != asked:
        raise InputError(Problem("the folder is quantized with another scheme", str(path), shown(asked), shown(there),
                                 "leave quantize out, or give the unquantized model"))  # fmt: skip


def shown(schemes: Any) -> str:
    return ", ".join(sorted(map(repr, schemes)))


def streamed(
    path: str | os.PathLike[str],
    auto: Any,
    config: Any,
    recipes: tuple[Recipe, ...],
    given: dict[str, Any],
    filed: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """(model, what transformers says of the keys). Raises InputError over everything wrong with the files at once."""
    from featherweight.interop.filed import Late, settle
    from featherweight.interop.hf_quantizer import JOB, Config, Job, named
    from featherweight.interop.quantized.foreign import idle
    from featherweight.interop.rounding import Dtypes

    stored = checkpoint(path)
    foreign = holds_codes(config) and not own(config)
    if foreign:
        stored = as_ours(path, config, stored)
    pending = Job(f"{path}/config.json", stored, () if own(config) else recipes)
    asked = {"quantization_config": Config()} if pending.recipes else {}
    stays = (filed or recipes) and not holds_codes(config)
    reading = {name: Late(t) for name, t in stored.items()} if stays else stored
    token = JOB.set(pending)
    try:
        model, info = model_class(auto, config).from_pretrained(
            None, config=config, state_dict=dict(reading), generation_config=generation(path),
            output_loading_info=True, **given, **asked,
        )  # fmt: skip
    finally:
        JOB.reset(token)
    model.name_or_path = model.config.name_or_path = os.fspath(path)
    if foreign:
        info["unexpected_keys"] = [k for k in info["unexpected_keys"] if not idle(k, stored)]
    model.stored_dtypes = Dtypes.of(model, pending.dtypes, named(model, stored))
    if not filed:
        settle(model)
    if pending.recipes:
        model.originals = stored  # LoftQ starts from what was lost
    return model, info


def as_ours(path: str | os.PathLike[str], config: Any, stored: Any) -> Any:
    """Another maker's checkpoint under our names; the config then says what it is to us."""
    from featherweight.interop.quantized.foreign import translated
    from featherweight.interop.quantized_folder import Record

    read = translated(config.quantization_config, stored, f"{path}/config.json:quantization_config")
    config.quantization_config = Record(read.schemes, dict.fromkeys(read.schemes, "")).to_dict()
    return read.stored


def model_class(auto: Any, config: Any) -> Any:
    """The class that an Auto class means for a config; a model's own class as it is. (Auto classes want a path.)"""
    if not hasattr(auto, "_model_mapping"):
        return auto
    if type(config) not in auto._model_mapping:
        raise InputError(Problem("no model of this kind for the task", "config.json:model_type", auto.__name__,
                                 repr(config.model_type), "give another task, or another model"))  # fmt: skip
    found = auto._model_mapping[type(config)]
    if not isinstance(found, list | tuple):
        return found
    return next((c for c in found if c.__name__ in (config.architectures or ())), found[0])


def generation(path: str | os.PathLike[str]) -> Any:
    """How the model generates: generation_config.json, or what config.json says of it."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(os.fspath(path))
    except OSError:
        return GenerationConfig.from_pretrained(
            os.fspath(path), config_file_name="config.json", _from_model_config=True
        )


def dtype_of_file(path: str | os.PathLike[str]) -> torch.dtype:
    """What `dtype="auto"` means: the dtype that the checkpoint's floats have."""
    from featherweight.interop.stream import dtype_in

    return dtype_in(checkpoint(path))
