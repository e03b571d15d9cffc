"""A transformers model with adapters saves its adapters only, and its Trainer's checkpoints keep them.

    model.save_pretrained(folder)     ->  PEFT's two files for each adapter; never the base, never a mixture of both
    folder/checkpoint-N (Trainer)     ->  also model.safetensors, the adapters under their names in
    `model.state_dict()`: Trainer resumes from, and returns to the best of, a file of that name

`_hf_peft_config_loaded` is what transformers asks before it trains a quantized model or checkpoints the gradients of a
frozen one.
"""

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featherweight.core.derived import derive
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules, frozen_class, hosts, reclass

CHECKPOINT = re.compile(r"checkpoint-\d+")


class Saver:
    """Mixin of a transformers model's class while adapters are attached."""

    plain_class: type[nn.Module]


def save_pretrained(
    self: Any, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
) -> None:
    """Write every attached adapter, in PEFT's format and layout; the base is not written. See `featherweight.save`."""
    from featherweight.checkpoint.files import write_tensors
    from featherweight.checkpoint.save import save

    if kwargs.get("push_to_hub"):
        raise InputError(Problem("not pushed from here", "push_to_hub", fix="save it, then upload the folder"))
    if not is_main_process:
        return
    folder = Path(save_directory)
    checkpoint = bool(CHECKPOINT.fullmatch(folder.name))
    save(self, folder, durable=checkpoint)
    if checkpoint:
        write_tensors(folder / "model.safetensors", live(self), {})


def live(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of all adapters under their names in the model's state dict."""
    found: dict[str, Tensor] = {}
    for path, host in hosts(model):
        found |= host.adapters.state_dict(prefix=f"{path}.adapters." if path else "adapters.")
    return found


def untied(model: nn.Module) -> None:
    """A merge gave a tied matrix values of its own: the config says so, or reloading would tie it again."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "tie_word_embeddings"):
        config.tie_word_embeddings = False


def settle(model: nn.Module) -> None:
    """After an attach: give every transformers model in `model` a `save_pretrained` that writes adapters."""
    for module in pretrained(model):
        if not isinstance(module, Saver):
            reclass(module, saver_class(frozen_class(module)))
            module._hf_peft_config_loaded = True  # type: ignore[assignment]


def leave(model: nn.Module) -> None:
    """After the last detach: the classes as they were."""
    for module in pretrained(model):
        if isinstance(module, Saver):
            reclass(module, module.plain_class)
            del module._hf_peft_config_loaded


def hold_codes(model: nn.Module) -> None:
    """After quantizing: transformers models in `model` that hold codes are saved as such."""
    if any(True for _ in pretrained(model)):
        from featherweight.interop.hf_quantizer import settle as settle_codes

        settle_codes(model)


def pretrained(model: nn.Module) -> Iterator[nn.Module]:
    """The transformers models in a model, itself included; none where transformers was never imported."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is not None:
        yield from [m for _, m in base_modules(model) if isinstance(m, library.PreTrainedModel)]


@cache
def saver_class(cls: Any) -> Any:
    """`cls` with the other `save_pretrained`, under the same name: made once."""
    return derive(cls, saver_class, Saver, save_pretrained=save_pretrained, plain_class=cls)
