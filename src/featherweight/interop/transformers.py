"""Bases from disk or hub: a model for a task in the dtype asked for, its tokenizer with a pad token, and errors
that say what is missing. Weights are read from safetensors only and no code of a checkpoint is ever run.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.core.anatomy import anatomy
from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.files.notes import hushed
from featherweight.interop import streamed
from featherweight.interop.pooling import set_pool
from featherweight.quant.recipe import Recipe

DTYPES = {
    "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64,
}  # fmt: skip


def load_base(
    path: str | os.PathLike[str],
    task: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    tokenizer: Any = None,
    seed: int = 0,
    quantize: Any = None,
    filed: bool = False,
    **options: Any,
) -> Any:
    """The pretrained model in `path` (a folder, or a name on the hub) for a task, in fp32 unless `dtype` says
    otherwise ("auto": what the file has).

    quantize: a scheme (or its name, or its file form): the weights become codes as they are read, one tensor at a
    time. A folder that `fw quantize` wrote is known as such and needs none.
    filed: what is no codes stays in its file and is read whenever it is used; nothing can be written to it.

    Sets `model.tokenizer` (from `path` unless given), `model.task`, and `model.new_tensors`: the names of tensors
    that the checkpoint lacks (a new head, a pooler), drawn from `seed`, so that the same call gives the same base.
    The head reads what the task's `pool` says, or the folder's config.
    `options` go to `from_pretrained`. Raises InputError for a missing folder, a missing or damaged file, and a
    checkpoint whose trunk is not the model's.
    """
    model = weighed(path, task, dtype, seed, Recipe.of(quantize), options, filed)
    model.tokenizer = load_tokenizer(path) if tokenizer is None else tokenizer
    fit_tokenizer(model)
    return model.to(device) if device is not None else model


def weighed(
    path: str | os.PathLike[str], task: Any, dtype: str | torch.dtype | None, seed: int, recipes: tuple[Recipe, ...],
    options: dict[str, Any], filed: bool,
) -> Any:  # fmt: skip
    """`load_base` before it has a tokenizer."""
    check_folder(path, "config.json")
    model, info = pretrained(path, task, dtype, seed, recipes, options, filed)
    check_keys(model, info, path)
    set_pool(model, getattr(task, "pool", "own"))
    model.new_tensors, model.new_seed = sorted(info["missing_keys"]), seed
    model.task = task
    return model


def pretrained(
    path: str | os.PathLike[str], task: Any, dtype: str | torch.dtype | None, seed: int, recipes: tuple[Recipe, ...],
    options: dict[str, Any], filed: bool = False,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """(model, what transformers says of the keys): in float, or tensor by tensor where it holds codes."""
    import transformers

    given = options if task is None else task.model_options() | options
    with refusing(path), quiet():
        config, rest = streamed.config_of(path, given)
    with hushed():  # the first model's class imports all that transformers knows
        auto = architecture(config, path) if task is None else getattr(transformers, task.auto)
    raise_all(unsuited(auto, config, task, path))
    streamed.check(path, config, recipes)
    kind = streamed.dtype_of_file(path) if dtype == "auto" else dtype_of(dtype)
    always = {"dtype": kind, "trust_remote_code": False, "use_safetensors": True}
    with refusing(path), quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipes or filed or streamed.holds_codes(config):
            return streamed.streamed(path, auto, config, recipes, rest | always, filed)
        return auto.from_pretrained(os.fspath(path), output_loading_info=True, **given, **always)


def architecture(config: Any, path: str | os.PathLike[str]) -> Any:
    """The class a checkpoint was saved from."""
    import transformers

    names = config.architectures or []
    if not names or not hasattr(transformers, names[0]):
        raise InputError(Problem("config.json names no architecture", str(path), got=repr(names), fix="give a task"))
    return getattr(transformers, names[0])


KINDS = {
    "AutoModelForCausalLM": "a decoder",
    "AutoModelForSeq2SeqLM": "an encoder-decoder",
    "AutoModelForMaskedLM": "a masked language model",
}


def unsuited(auto: Any, config: Any, task: Any, path: str | os.PathLike[str]) -> list[Problem]:
    """A model whose architecture has no class for the task: say which tasks over such rows it has one for."""
    import transformers

    def knows(name: str) -> bool:
        return bool(name) and type(config) in getattr(getattr(transformers, name), "_model_mapping", {})

    if not hasattr(auto, "_model_mapping") or knows(auto.__name__):
        return []
    tasks, shapes = getattr(type(task), "known", {}), set(getattr(task, "shapes", ()))
    others = sorted(n for n, kind in tasks.items() if shapes & set(kind.shapes) and knows(kind.auto))
    fix = f"of the tasks over such rows it can do {listed(others)}" if others else "take another model"
    want = KINDS.get(auto.__name__, f"one that {auto.__name__} has a class for")
    return [Problem(f"the model cannot do {type(task).__name__}", str(path), want, config.model_type, fix)]


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer in `path`. One without a pad token pads with its EOS: padding is told apart by the attention
    mask and by the labels, never by the token's number, so that a trained EOS stays trained. The vocabulary is
    never changed.
    """
    import transformers

    check_folder(path)
    with refusing(path, "tokenizer"), quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(os.fspath(path), trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                Problem("the tokenizer has neither a pad nor an EOS token", str(path), fix="give it a pad_token")
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def fit_tokenizer(model: Any) -> None:
    """Tell the model the pad token. Raises InputError where the tokenizer has more tokens than the model has
    embeddings.
    """
    tokenizer, table = model.tokenizer, model.get_input_embeddings()
    if isinstance(table, nn.Embedding) and len(tokenizer) > table.num_embeddings:
        raise InputError(
            Problem(
                "tokenizer and model have different vocabularies",
                str(model.name_or_path),
                f"at most {table.num_embeddings:,} tokens, as the model's embedding has rows",
                f"{len(tokenizer):,} tokens",
                "give the tokenizer the model was trained with",
            )
        )
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or torch.float32
    if dtype not in DTYPES:
        raise InputError(Problem("unknown dtype", "dtype", expected=listed(list(DTYPES)), got=repr(dtype)))
    return DTYPES[dtype]


def check_folder(path: str | os.PathLike[str], need: str = "") -> None:
    """Raise InputError for a local path that is no folder, or one without the file it needs."""
    place = Path(path).expanduser()
    local = place.is_absolute() or str(path).startswith((".", "~")) or place.exists() or str(path).count("/") > 1
    if not local:
        return
    if not place.is_dir():
        fix = "give a model's folder, or a hub name such as owner/name"
        raise InputError(Problem("no such folder", str(path), fix=fix))
    if need and not (place / need).is_file():
        there = sorted(p.name for p in place.iterdir())
        adapter = "adapter_config.json" in there
        fix = "it holds an adapter: use load_model, or --adapter" if adapter else "give a model's folder"
        raise InputError(Problem(f"no {need}", str(path), got=listed(there), fix=fix))


@contextmanager
def refusing(path: str | os.PathLike[str], what: str = "model") -> Iterator[None]:
    """Turn what transformers says about files that are missing, damaged or foreign into an InputError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        fix = "fetch or copy the model again"
        raise InputError(Problem("damaged safetensors", str(path), got=str(error), fix=fix)) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reach = "give a folder, or a hub name that is in the cache (HF_HUB_OFFLINE is set)"
        fix = reach if offline() else "check its files, or its name on the hub"
        raise InputError(Problem(f"no {what} could be loaded", str(path), got=first_lines(error), fix=fix)) from error


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")


def first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def check_keys(model: Any, info: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """A new head or pooler is fine, and so is another task's head left over; anything else is another model's
    checkpoint.
    """
    trunk = model.base_model
    prefix = f"{model.base_model_prefix}."
    heads = tuple(f"{s.path}." for s in anatomy(model).sites("head"))
    buffers = {name.removeprefix(prefix) for name, _ in model.named_buffers()}
    inside = {name for name, _ in trunk.named_children()}
    missing = [k for k in info["missing_keys"] if not k.startswith(heads) and ".pooler." not in f".{k}"]
    extra = [
        k
        for k in info["unexpected_keys"]
        if (k.startswith(prefix) or k.split(".")[0] in inside) and k.removeprefix(prefix) not in buffers
    ]
    raise_all(
        [Problem("the checkpoint lacks a tensor of the model", f"{path}:{k}") for k in sorted(missing)]
        + [Problem("the checkpoint has a tensor that the model lacks", f"{path}:{k}") for k in sorted(extra)]
        + [Problem("misshapen tensor", f"{path}:{k[0]}", str(k[2]), str(k[1])) for k in sorted(info["mismatched_keys"])]
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No reports and bars from transformers: what they say is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with hushed():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
