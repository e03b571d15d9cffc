"""Methods: one paper, one file. Each opens with its equation, its symbols and its source."""

from featherweight.methods.bitfit import BitFit
from featherweight.methods.full import Full
from featherweight.methods.head import Head
from featherweight.methods.ia3 import IA3
from featherweight.methods.lora import LoRA
from featherweight.methods.norm import LayerNorm

__all__ = ["IA3", "BitFit", "Full", "Head", "LayerNorm", "LoRA"]
