"""What a cached row goes by, and what the cache as a whole is of."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b, sha256
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.host import base_modules
from featherweight.core.state import state
from featherweight.core.switch import switch_of
from featherweight.tasks.modes import inner
from featherweight.tasks.token_loss import IGNORED

# What a config says beside what the model computes.
ELSEWHERE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures",
             "quantization_config", "id2label", "label2id", "problem_type")  # fmt: skip


def row_keys(given: Mapping[str, Tensor], targets: Tensor | None) -> list[bytes]:
    """16 bytes a row: of its real tokens as both models get them, and of the places that have a target. Padding does
    not count, nor in which batch the row is."""
    mask = given["attention_mask"].bool().cpu().numpy()
    trained = None if targets is None else (targets != IGNORED).cpu().numpy()
    there = {name: t.cpu().numpy() for name, t in given.items() if name != "attention_mask"}
    found = []
    for row, real in enumerate(mask):
        digest = blake2b(digest_size=16)
        for name, tensor in there.items():
            kept = real if tensor.shape == mask.shape else trained[row]  # type: ignore[index]  # a decoder's inputs
            digest.update(name.encode() + tensor[row][kept].tobytes())
        if trained is not None:
            places = trained[row][real] if trained.shape == mask.shape else trained[row][trained[row]]
            digest.update(places.tobytes())
        found.append(digest.digest())
    return found


def teacher_key(pair: Any) -> str:
    """A digest of everything that its outputs follow from: every tensor, codes and active adapters included, these
    adapters' methods and strengths, its class and config, and what it alone reads."""
    with pair.teaching():
        whole, switch = inner(pair.teacher), switch_of(pair.teacher)
        config = getattr(whole, "config", None)
        said = {k: v for k, v in config.to_dict().items() if k not in ELSEWHERE} if config is not None else {}
        methods = {name: repr(switch.attached[name].method) for name in switch.active}
        told = [type(whole).__name__, said, methods, repr(switch.strength), pair.words, repr(pair.context)]
        held = sha256(json.dumps(told, default=str).encode())
        for key, tensor in sorted(tensors(whole, switch.active).items()):
            held.update(f"{key} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            held.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return held.hexdigest()[:16]


def tensors(model: nn.Module, active: Sequence[str]) -> dict[str, Tensor]:
    """Parameters and buffers by name, and those of the active adapters."""
    found: dict[str, Tensor] = {}
    for path, module in base_modules(model):
        own = {**module._parameters, **module._buffers}
        found |= {f"{path}.{name}": t for name, t in own.items() if t is not None}
    for name in active:
        found |= {f"{name}/{key}": t for key, t in state(model, name).items()}
    return found


def tokenizer_key(tokenizer: Any) -> str:
    """A digest of its map of tokens to ids."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return sha256(vocabulary.encode()).hexdigest()[:16]
