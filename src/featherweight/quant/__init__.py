"""Number formats, one file each, and the modules that keep them: `Scheme`, `Quantized`."""

from featherweight.quant.nf4 import NF4
from featherweight.quant.quantized import Quantized, QuantLinear
from featherweight.quant.scheme import Packed, Scheme

__all__ = ["NF4", "Packed", "QuantLinear", "Quantized", "Scheme"]
