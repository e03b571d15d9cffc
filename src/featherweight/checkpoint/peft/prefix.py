"""PREFIX_TUNING: `prompt_embeddings` (n, 2 L d_kv), seen as (n, 2L, kv_heads, head_dim): K₀, V₀, K₁, V₁ ...

What PEFT cannot say is stored in our own type: prefixes of the top layers only, those of models without a cache
(DistilBERT, ViT), and those of encoder-decoders (PEFT cuts its one prefix into pieces for the decoder, some of which
are never used).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry
from featherweight.checkpoint.peft import own
from featherweight.checkpoint.peft.codec import Adapters, Codec, typed
from featherweight.checkpoint.peft.common import UNWRAPPED
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Method
from featherweight.core.virtual import encodes, parameters
from featherweight.methods.prefix import NAMES, KeysValues, Prefix

GEOMETRY = ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")
FIELDS = (*GEOMETRY, "modules_to_save", "encoder_hidden_size", "prefix_projection", "init_weights")
TYPES = dict.fromkeys(GEOMETRY, (int,)) | {"modules_to_save": (list,)}


def made(adapters: Adapters) -> dict[str, KeysValues]:
    return {path: a for path, a in adapters.items() if isinstance(a, KeysValues)}


def spoken(model: nn.Module, adapters: Adapters) -> bool:
    """Whether PEFT can say it: one pair of the same width in each layer of a model with one stack, as it is cached."""
    base = getattr(model, "config", None)
    widths = {size for a in made(adapters).values() for size in a.sizes}
    whole = len(made(adapters)) == getattr(base, "num_hidden_layers", None)
    cached = "past_key_values" in parameters(getattr(model, "base_model", model))
    return len(widths) == 1 and whole and cached and not repeats(model) and not encodes(model)


def repeats(model: nn.Module) -> bool:
    """Whether a model caches grouped keys once for every query: Falcon's later ones."""
    return bool(getattr(getattr(model, "config", None), "new_decoder_architecture", False))


def config(model: nn.Module, method: Any, adapters: Adapters) -> dict[str, Any]:
    if not spoken(model, adapters):
        return {"peft_type": f"{own.MARK}{type(method).__name__.upper()}", **own.config(model, method, adapters)}
    base: Any = model.config
    of = next(iter(made(adapters).values()))
    return {
        "num_virtual_tokens": method.tokens,
        "token_dim": of.sizes[0],
        "num_transformer_submodules": 1,
        "num_attention_heads": of.sizes[0] // head_size(base),
        "num_layers": base.num_hidden_layers,
        "encoder_hidden_size": of.sizes[0],
        "prefix_projection": False,
    }


def head_size(base: Any) -> int:
    return int(getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads)


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    if not spoken(model, adapters):
        return own.entries(model, adapters, state)
    parts = tuple(f"{path}.{name}" for path in made(adapters) for name in NAMES)
    n, sizes = len(state[parts[0]]), [state[p].shape[1] for p in parts]
    return [
        Entry(
            "prompt_embeddings",
            (n, sum(sizes)),
            parts,
            lambda given: torch.cat(list(given), 1),
            lambda kept: torch.split(kept, sizes, 1),
        )
    ]


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    """The prefix that a foreign config means. A projection is not in the file: PEFT stores what it computed."""
    typed(config, TYPES, where)
    n, found = config.get("num_virtual_tokens"), []
    if not n or n < 1:
        found.append(Problem("no virtual tokens", f"{where}:num_virtual_tokens", "at least 1", repr(n)))
    if encodes(model):
        what = "a prefix of an encoder-decoder, which PEFT gives in pieces to the decoder alone"
        found.append(Problem(what, f"{where}:peft_type", fix="train it here: fw.Prefix has one for each attention"))
    if repeats(model):
        what = "a prefix with keys of its own for queries that share theirs in the model"
        found.append(Problem(what, f"{where}:peft_type", fix="train it here: fw.Prefix has one for each group"))
    raise_all(found)
    assert n
    return Prefix(tokens=int(n), hidden=0)


CODEC = Codec("PREFIX_TUNING", FIELDS, config, entries, method, fits=lambda m: m.layers is None, head=UNWRAPPED)
