"""Number formats, one file each, and the modules that keep them: `Scheme`, `Quantized`."""

from featherweight.quant.absmax import Absmax
from featherweight.quant.blockwise import Blockwise
from featherweight.quant.fp4 import FP4
from featherweight.quant.half import Half
from featherweight.quant.nf4 import NF4
from featherweight.quant.quantile import Quantile
from featherweight.quant.quantized import Quantized, QuantLinear
from featherweight.quant.scheme import Packed, Scheme
from featherweight.quant.zeropoint import ZeroPoint

__all__ = [
    "FP4",
    "NF4",
    "Absmax",
    "Blockwise",
    "Half",
    "Packed",
    "QuantLinear",
    "Quantile",
    "Quantized",
    "Scheme",
    "ZeroPoint",
]
