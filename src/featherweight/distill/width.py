"""Narrower students: the config of one, and what such a student takes over.

    width d, heads h as the teacher's, head size d / h, feed-forward f (default: f_t d / d_t)

So were TinyBERT (312 of 768, 12 heads, 1200) and MiniLM (384, 12 heads, 1536) made; with as many heads as the teacher
attention maps can be compared, and hidden states through learned projections (`projection.py`). The values are those a
new model starts from: which dimensions of a teacher to keep nothing published for these recipes says. Embeddings of a
size of their own (ELECTRA, ALBERT) keep it, and are copied.
"""

from collections.abc import Iterator
from typing import Any

import torch

from featherweight.core.errors import Problem, raise_all

FFN = ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim")
HEAD = ("head_dim", "d_kv", "kv_channels")  # the size of one head, where a config says it apart
ALSO = ("word_embed_proj_dim", "max_embed_dim")  # names that say the width once more, where they say the same


def narrowed(config: Any, width: int | None, ffn: int | None) -> bool:
    """Give a config another width and feed-forward size, in place; whether anything changed. Raises InputError for a
    width that the heads do not divide, or that is not below the teacher's."""
    own = int(config.hidden_size)
    heads = int(config.num_attention_heads)
    width = own if width is None else width
    raise_all(misfits(config, width, own, heads, ffn))
    before = {name: found for name in FFN if (found := getattr(config, name, None))}
    sizes = {name: ffn or round(found * width / own) for name, found in before.items()}
    if width == own and sizes == before:
        return False
    for name in HEAD:
        if getattr(config, name, None):
            setattr(config, name, max(1, getattr(config, name) * width // own))
    for name in ALSO:
        if getattr(config, name, None) == own:
            setattr(config, name, width)
    config.hidden_size = width
    for name, size in sizes.items():
        setattr(config, name, size)
    return True


def misfits(config: Any, width: int, own: int, heads: int, ffn: int | None) -> Iterator[Problem]:
    apart = next((size for name in HEAD if (size := getattr(config, name, None))), None)
    pairs = 2 if getattr(config, "rope_parameters", None) else 1  # what rotation takes of a head
    step = heads * pairs if apart is None else max(1, own * pairs // apart)  # a head of whole pairs
    if not 0 < width <= own:
        yield Problem("no width of a student", "width", f"1 to {own}, the teacher's", str(width))
    elif width % step:
        yield Problem("the width does not divide into heads", "width", f"a multiple of {step}", str(width))
    if ffn is not None and ffn < 1:
        yield Problem("no size of a feed-forward layer", "ffn", "at least 1", str(ffn))
    if ffn is not None and not any(getattr(config, name, None) for name in FFN):
        yield Problem("the config does not say how wide its feed-forward layers are", "ffn", f"one of {', '.join(FFN)}")


@torch.no_grad()
def copy_embeddings(made: Any, teacher: Any) -> None:
    """Take over the teacher's table of tokens where it has the student's shape."""
    own, theirs = made.get_input_embeddings().weight, teacher.get_input_embeddings().weight
    if own.shape == theirs.shape:
        own.copy_(theirs)
