"""What a model can take: its vocabulary against the tokenizer's, its positions against a length, a padding token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem
from featherweight.tasks.modes import inner

if TYPE_CHECKING:
    from torch import nn


def check_vocabulary(model: nn.Module, tokenizer: Any) -> None:
    """Raise InputError where the tokenizer makes ids that the model's input embedding has no row for."""
    rows = int(inner(model).get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if beyond:
        first = min(beyond, key=beyond.__getitem__)
        raise InputError(Problem(
            "the tokenizer does not belong to this model", "tokenizer", f"ids below {rows}, the rows of its embedding",
            f"{len(beyond)} tokens beyond it, the first {first!r} = {beyond[first]}",
            "use the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer)) before attaching",
        ))  # fmt: skip


def position_limit(model: nn.Module, own: int | None = None) -> int | None:
    """The longest input in tokens, None where the positions of the model have no end (T5, ALiBi, state spaces). Learned
    positions that virtual tokens take (`own`, or those that are on) are not the text's; InputError where they leave
    none.
    """
    from featherweight.core.room import taken

    limit, own = stated_limit(model), taken(inner(model)) if own is None else own
    if limit is not None and own >= limit:
        raise InputError(Problem("virtual tokens leave no position for the text", "method.tokens",
                                 f"fewer than the {limit} positions of the model", str(own), "take fewer"))  # fmt: skip
    return None if limit is None else limit - own


def stated_limit(model: nn.Module) -> int | None:
    """How many tokens the model says that it takes."""
    config = getattr(inner(model), "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, module in inner(model).named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - int(module.padding_idx) - 1  # RoBERTa counts from padding_idx + 1
    return limit


def stored_limit(path: str) -> int | None:
    """`position_limit` of the model in a folder (or of a hub name), from its config alone: no weights are read."""
    import torch
    import transformers

    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        return None  # a tokenizer alone
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        return position_limit(transformers.AutoModel.from_config(config, trust_remote_code=False))


def check_length(model: nn.Module, length: int | None, own: int | None = None) -> int | None:
    """The length to cut texts at: what was asked for, else the model's limit (beside `own` virtual tokens, or those
    that are on); None where neither is known.

    Raises InputError for a length that the model has no positions for.
    """
    from featherweight.core.room import taken

    limit = position_limit(model, own)
    if length is None:
        return limit
    if length < 1 or (limit is not None and length > limit):
        less = beside(limit, taken(inner(model)) if own is None else own)
        wanted = f"1 to {limit}{less}" if limit else "at least 1"
        fix = "leave it out to use all positions of the model" + (", or take fewer virtual tokens" if less else "")
        raise InputError(Problem("no such length", "length", wanted, str(length), fix))
    return length


def beside(limit: int | None, own: int) -> str:
    """Why there are no more positions than `limit` for the text, where virtual tokens take some."""
    return f": {limit + own} positions less {own} virtual tokens" if limit and own else ""


def check_causal(model: nn.Module) -> None:
    """Raise InputError for a model whose earlier outputs depend on later tokens: it would see what it is to predict,
    and its loss would fall without anything learned (BERT and its kin load as language models without a word).

    Asked of the model itself: two short rows that differ in their last token alone.
    """
    import torch

    core = inner(model)
    table = core.get_input_embeddings().weight  # type: ignore[operator]
    rows, was = min(int(table.shape[0]), 97), model.training
    ids = torch.arange(8, device=table.device).remainder(rows).repeat(2, 1)
    ids[1, -1] = rows // 2
    model.eval()
    try:
        with torch.no_grad():
            first, second = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    finally:
        model.train(was)
    gap = float((first - second).abs().max() / first.abs().max().clamp_min(1e-12))
    if gap > (1e-4 if table.dtype == torch.float32 else 1e-2):
        raise InputError(Problem(
            "the model is no causal language model: it sees the tokens that it is to predict", "model",
            "outputs that depend on earlier tokens alone", f"{type(core).__name__}, outputs {gap:.1e} apart (relative)",
            "take a decoder (Llama, GPT-2 …), or data with labels",
        ))  # fmt: skip


def pad_id(model: nn.Module, tokenizer: Any) -> int:
    """The id that fills short rows: the tokenizer's, the model's, else EOS or 0 (masked, so any id will do).

    Sequence classifiers over decoders find a row's last token by `config.pad_token_id`: it is set where missing.
    """
    config = getattr(inner(model), "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    choices = (getattr(tokenizer, "pad_token_id", None), getattr(text, "pad_token_id", None),
               getattr(tokenizer, "eos_token_id", None), 0)  # fmt: skip
    pad = next(int(i) for i in choices if i is not None and int(i) >= 0)
    for owner in (config, text):
        if owner is not None and getattr(owner, "pad_token_id", None) is None:
            owner.pad_token_id = pad
    return pad
