"""Calibration texts as batches of a model's inputs: rows of any shape that the data package reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem

if TYPE_CHECKING:
    from featherweight.data.types import Example


def batches(
    model: Any, file: str, columns: dict[str, str] | None, rows: int, length: int, batch: int
) -> list[dict[str, Any]]:
    """Batches of the first `rows` rows, cut at `length` tokens. Raises InputError where no row has a token."""
    from featherweight.data.load import load
    from featherweight.data.rows import examples
    from featherweight.tasks.check import check_length, check_vocabulary

    data = load(file, columns)
    tokenizer = model.tokenizer
    check_vocabulary(model, tokenizer)
    cut = min(length, check_length(model, None) or length)
    found = examples(data.train[:rows], data.shape)
    texts = [text_of(example, tokenizer) for example in found]
    kept = [text for text in texts if text[0]]
    if not kept:
        raise InputError(Problem("no row has text to calibrate on", file, "rows with text", f"{len(texts)} rows"))
    return [encoded(model, tokenizer, kept[i : i + batch], cut) for i in range(0, len(kept), batch)]


def text_of(example: "Example", tokenizer: Any) -> tuple[str, str | None]:
    """All text of a row, answers too, and the second text of a pair."""
    if example.messages:
        return str(tokenizer.apply_chat_template(list(example.messages), tokenize=False)), None
    if example.turns:
        return "".join(turn.text for turn in example.turns), None
    return example.text, example.pair


def encoded(model: Any, tokenizer: Any, texts: Sequence[tuple[str, str | None]], length: int) -> dict[str, Any]:
    """One batch. Encoder-decoders read the same text on both sides."""
    pairs = [pair for _, pair in texts if pair is not None]
    made = tokenizer(
        [text for text, _ in texts], pairs if len(pairs) == len(texts) else None,
        truncation=True, max_length=length, padding=True, return_tensors="pt",
    )  # fmt: skip
    wanted = {"input_ids", "attention_mask", "token_type_ids"}
    tensors = {name: made[name].to(model.device) for name in made if name in wanted}
    if model.config.is_encoder_decoder:
        tensors["decoder_input_ids"] = tensors["input_ids"]
    return tensors
