"""A tokenizer of whole words, so that tokens can be counted by hand."""

from collections.abc import Sequence
from typing import Any


def word_tokenizer(words: Sequence[str]) -> Any:
    """A word is a token; <pad>, </s> and <unk> are 0, 1 and 2, the words follow."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
