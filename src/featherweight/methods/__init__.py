"""Methods: one paper, one file. Each opens with its equation, its symbols and its source."""

from featherweight.methods.bitfit import BitFit
from featherweight.methods.compacter import Compacter
from featherweight.methods.full import Full
from featherweight.methods.fusion import Fusion
from featherweight.methods.head import Head
from featherweight.methods.houlsby import Houlsby
from featherweight.methods.ia3 import IA3
from featherweight.methods.lin import Lin
from featherweight.methods.lora import LoRA
from featherweight.methods.norm import LayerNorm
from featherweight.methods.parallel import Parallel
from featherweight.methods.pfeiffer import Pfeiffer

__all__ = [
    "BitFit",
    "Compacter",
    "Full",
    "Fusion",
    "Head",
    "Houlsby",
    "IA3",
    "LayerNorm",
    "Lin",
    "LoRA",
    "Parallel",
    "Pfeiffer",
]
