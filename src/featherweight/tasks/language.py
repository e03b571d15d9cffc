"""The kinds of language models, by transformers' Auto class; tasks name theirs as `auto`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featherweight.tasks.modes import inner

if TYPE_CHECKING:
    from torch import nn

KINDS = {
    "AutoModelForCausalLM": "a decoder alone",
    "AutoModelForSeq2SeqLM": "an encoder-decoder",
    "AutoModelForMaskedLM": "a masked language model",
    "": "a model without a language head",
}


def head_of(config: Any, name: str = "") -> str:
    """Auto class of the language model that a config describes; `name` is the model's class, where there is one."""
    if getattr(config, "is_encoder_decoder", False):
        return "AutoModelForSeq2SeqLM"
    names = (name,) if name else getattr(config, "architectures", None) or ()
    masked = any(n.endswith("ForMaskedLM") for n in names)
    return "AutoModelForMaskedLM" if masked else "AutoModelForCausalLM"


def head_in(model: nn.Module) -> str:
    """Auto class of a live model, "" where it writes no language."""
    from featherweight.core.host import frozen_class

    core: Any = inner(model)
    if getattr(core, "get_output_embeddings", lambda: None)() is None:
        return ""
    return head_of(core.config, frozen_class(core).__name__)
