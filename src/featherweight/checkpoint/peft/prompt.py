"""Prompt tuning and P-tuning: `prompt_embeddings` (n, d), without any prefix.

P-tuning's are the computed ones, in both directions: the encoder that made them is not in the file.

For encoder-decoders peft stores 2n rows and reads the first n: the others never enter its forward. They are dropped
when read; ours say `num_transformer_submodules: 1`, which peft takes.
"""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, same
from featherweight.checkpoint.files import CONFIG
from featherweight.checkpoint.peft.codec import Adapters, Codec, typed
from featherweight.checkpoint.peft.common import UNWRAPPED
from featherweight.core.errors import InputError, Problem
from featherweight.core.method import Method
from featherweight.core.virtual import Virtual
from featherweight.methods.prompt import Prompt
from featherweight.methods.ptuning import PTuning

log = logging.getLogger("featherweight")

GEOMETRY = ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")
FIELDS = (
    *GEOMETRY,
    "modules_to_save",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
)
TYPES = dict.fromkeys(GEOMETRY, (int,)) | {"modules_to_save": (list,)}


def geometry(model: nn.Module, adapters: Adapters) -> dict[str, Any]:
    """The fields of peft's prompt methods. Layers and heads are the model's, though a prompt needs neither."""
    soft = next(a for a in adapters.values() if isinstance(a, Virtual))
    config: Any = getattr(model, "config", None)
    return {
        "num_virtual_tokens": soft.count,
        "token_dim": soft.frame.width,
        "num_transformer_submodules": 1,
        "num_attention_heads": getattr(config, "num_attention_heads", 1),
        "num_layers": getattr(config, "num_hidden_layers", 1),
    }


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    return {**geometry(model, adapters), "prompt_tuning_init": "RANDOM"}


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    key = next(k for k in state if k.rpartition(".")[2] == "prompt_embeddings")
    return [same("prompt_embeddings", key, tuple(state[key].shape))]


def tokens(config: Mapping[str, Any], where: str) -> int:
    """How many virtual tokens a foreign config means."""
    typed(config, TYPES, where)
    n = config.get("num_virtual_tokens")
    if not n or n < 1:
        raise InputError(Problem("no virtual tokens", f"{where}:num_virtual_tokens", "at least 1", repr(n)))
    return int(n)


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    return Prompt(tokens=tokens(config, where), init="normal")


def used(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the second half of an encoder-decoder's prompts."""
    kept, n = tensors.get("prompt_embeddings"), tokens(config, CONFIG)
    if config.get("num_transformer_submodules") != 2 or kept is None or len(kept) != 2 * n:
        return tensors
    log.warning("prompt_embeddings: the last %d of %d rows, which peft stores and never uses, are dropped", n, 2 * n)
    return {**tensors, "prompt_embeddings": kept[:n]}


def in_front(method: Prompt) -> bool:
    return not method.decoder


CODEC = Codec("PROMPT_TUNING", FIELDS, config, entries, method, in_front, UNWRAPPED, used)


ENCODER = ("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout")


def encoder_config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    """peft builds an encoder only to train; for use it reads the embeddings."""
    shape = geometry(model, adapters)
    return {**shape, "encoder_reparameterization_type": "MLP", "encoder_hidden_size": shape["token_dim"]}


def plain(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    return PTuning(template=(tokens(config, where),), encoder="none")


def before_input(method: PTuning) -> bool:
    """Whether peft can place the tokens."""
    return method.pseudo is None and not any(method.sizes[1:])


P_TUNING = Codec(
    "P_TUNING",
    (*GEOMETRY, "modules_to_save", *ENCODER),
    encoder_config,
    entries,
    plain,
    before_input,
    UNWRAPPED,
    used,
)
