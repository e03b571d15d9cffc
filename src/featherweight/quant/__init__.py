"""Number formats, one file each, and the modules that keep them: `Scheme`, `Quantized`."""

from featherweight.quant.absmax import Absmax
from featherweight.quant.blockwise import Blockwise
from featherweight.quant.convert import convert
from featherweight.quant.fp4 import FP4
from featherweight.quant.gptq import GPTQ
from featherweight.quant.half import Half
from featherweight.quant.linear import QuantLinear
from featherweight.quant.llmint8 import LLMInt8
from featherweight.quant.nf4 import NF4
from featherweight.quant.qat import QAT
from featherweight.quant.quantile import Quantile
from featherweight.quant.quantized import Quantized, dequantize
from featherweight.quant.scheme import Packed, Scheme
from featherweight.quant.zeropoint import ZeroPoint

__all__ = [
    "FP4",
    "GPTQ",
    "NF4",
    "QAT",
    "Absmax",
    "Blockwise",
    "Half",
    "LLMInt8",
    "Packed",
    "QuantLinear",
    "Quantile",
    "Quantized",
    "Scheme",
    "ZeroPoint",
    "convert",
    "dequantize",
]
