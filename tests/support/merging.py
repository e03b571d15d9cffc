"""Folders of a base with an adapter beside it, and what a folder's files hold."""

from pathlib import Path
from typing import Any

import torch

import featherweight as fw
from featherweight.interop.stream import checkpoint
from support.models import disturb


def four_words() -> Any:
    """The smallest tokenizer that a model can be saved with."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def held(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder, by name."""
    return {name: stored[...] for name, stored in checkpoint(folder).items()}


def adapted(model: Any, place: Path, method: Any, task: Any = None, scale: float = 0.1) -> Path:
    """A base's folder and an adapter's beside it; gives the adapter's."""
    model.save_pretrained(place / "base")
    four_words().save_pretrained(place / "base")
    base = fw.load_base(place / "base", task)
    fw.attach(base, method)
    disturb(base, scale)
    fw.save(base, place / "adapter")
    return place / "adapter"
