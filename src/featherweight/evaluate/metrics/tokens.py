"""The two tokenizers of text metrics: mteval's for BLEU and NIST, a Penn-Treebank-like one for ROUGE-L and CIDEr-D."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b")
WORD = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b|\w+(?:-\w+|[.,]\d+)*|[^\w\s]")
PUNCTUATION = frozenset("'\"“”‘`()[]{}.?!,:;-–—…")


def mteval(text: str) -> list[str]:
    """Tokens of mteval-v13a, lower-cased: the case-insensitive default of that script, which E2E uses."""
    return str(_mteval_13a()(text)).lower().split()


@cache
def _mteval_13a():  # type: ignore[no-untyped-def]  # sacrebleu is untyped
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def treebank(text: str) -> list[str]:
    """Lower-case words in the manner of Stanford's PTBTokenizer as the COCO metrics use it, which needs Java.

    Contractions are split (do n't, it 's), hyphenated words and decimal numbers are whole, punctuation is dropped,
    other symbols (£, %, &) are tokens. Both sides of a comparison are cut alike, so a rare difference to the Java
    tokenizer moves a score by little; scores are not claimed equal to the official scorer's to the last digit.
    """
    parted = CLITIC.sub(r" \1", text.lower().replace("’", "'"))
    return [token for token in WORD.findall(parted) if token not in PUNCTUATION]


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs."""
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
