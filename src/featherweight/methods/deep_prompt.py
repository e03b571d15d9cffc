"""P-tuning v2: deep prompts, trained keys and values in every layer of an encoder or decoder, with a task head.

    K' = [P_k; K]     V' = [P_v; V]     P_k, P_v (n, d_kv) in each of the L attentions     y = C(h(x))

The same code path as prefix tuning, without the re-parameterization (`hidden` > 0 turns it on: on some tasks it helps,
on others it hurts), for classification and tagging with an ordinary head C on the first token or on every token,
which trains along and needs no verbalizer. Simple classification wants n below 20, hard sequence tasks about 100.
Count: 2 L n d_kv + head. Init: normal with variance 1. Not the identity. Merge: none.
Source: Liu et al. 2022, "P-Tuning v2: Prompt tuning can be comparable to fine-tuning universally across scales and
tasks", arXiv:2110.07602.
"""

from dataclasses import dataclass
from typing import ClassVar

from featherweight.methods.prefix import Prefix


@dataclass(frozen=True, repr=False)
class DeepPrompt(Prefix):
    """`tokens` deep prompts in the top `layers` blocks (None: all)."""

    tokens: int = 20
    hidden: int = 0

    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2110.07602"
    place: ClassVar[str] = "keys and values of every attention, and the head"
    lr: ClassVar[float] = 1e-2
    lr_source: ClassVar[str] = "Liu et al. 2022, scripts for SuperGLUE: 5e-3 to 1e-2, many epochs (unverified)"
