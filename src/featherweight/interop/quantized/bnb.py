"""bitsandbytes' weights as schemes, and back: what their files say is what ours hold, byte for byte.

    Linear4bit     nf4, fp4, plain or double scales    <->   NF4, FP4("bitsandbytes")   (block, double)
    Linear8bitLt   int8                                <->   LLMInt8(threshold)

Tables are part of their files and constants of ours: a file with other tables, or scales in other blocks than 256, is
refused. Weights are (out, in) in both; transformers turns a Conv1D that way before it is encoded, and so do we.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import Problem, raise_all
from featherweight.interop.quantized.bnb4 import Nested, Weight4
from featherweight.quant import codebooks
from featherweight.quant.fp4 import FP4
from featherweight.quant.llmint8 import LLMInt8
from featherweight.quant.nf4 import NF4
from featherweight.quant.ops import NESTED
from featherweight.quant.scheme import Packed, Scheme

METHOD = "bitsandbytes"
TABLES = {"nf4": "nf4", "fp4": "fp4-bitsandbytes"}  # their name of a kind -> ours of its table
EXACT = 1e-6  # how near a file's table must be to ours: the last bits of its making


def scheme4(weight: Weight4, where: str) -> Scheme:
    """The scheme of a 4-bit weight. Raises InputError for tables and blocks that none has."""
    raise_all(others(weight, where))
    double = weight.nested is not None
    return NF4(weight.block, double) if weight.kind == "nf4" else FP4(weight.block, double)


def others(weight: Weight4, where: str) -> Iterator[Problem]:
    """What of a weight no scheme of ours has."""
    fix = "load it with bitsandbytes and attach to the live model"
    tables = [("quant_map", weight.table, TABLES[weight.kind])]
    if weight.nested is not None:
        tables.append(("nested_quant_map", weight.nested.table, "dynamic8"))
        if weight.nested.block != NESTED:
            yield Problem("scales in other blocks", where, str(NESTED), str(weight.nested.block), fix)
    for name, table, ours in tables:
        off = float((table.cpu() - torch.tensor(codebooks.LEVELS[ours])).abs().max())
        if not off <= EXACT:
            yield Problem(f"another table than {ours}'s", f"{where}.{name}", got=f"values off by {off:.2g}", fix=fix)


def packed4(weight: Weight4) -> Packed:
    """The tensors of a 4-bit weight under our names."""
    packed = {"codes": weight.codes, "absmax": weight.absmax}
    if weight.nested is None:
        return packed
    offset = torch.tensor(weight.nested.offset, dtype=torch.float32)
    return packed | {"nested_absmax": weight.nested.absmax, "nested_offset": offset}


def weight4(scheme: Any, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Weight4:
    """Our tensors as one of their weights; `dtype` is what it decodes to."""
    kind = "nf4" if isinstance(scheme, NF4) else "fp4"
    codes = packed["codes"]
    nested = None
    if scheme.double:
        table = codebooks.levels("dynamic8", codes).clone()
        nested = Nested(NESTED, packed["nested_absmax"], table, float(packed["nested_offset"]))
    table = codebooks.levels(TABLES[kind], codes).clone()
    return Weight4(kind, shape, dtype, scheme.block, codes, packed["absmax"], table, nested)


def unsayable(scheme: Scheme, where: str) -> Iterator[Problem]:
    """Why a scheme has no place in their files."""
    if isinstance(scheme, NF4) or (isinstance(scheme, FP4) and scheme.variant == METHOD):
        if scheme.block not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            yield Problem("bitsandbytes has no such block", where, "a power of two from 32 to 4096", str(scheme.block))
    elif not isinstance(scheme, LLMInt8) or scheme.keep:
        yield Problem(
            "bitsandbytes has no such format", where, "NF4, FP4 or LLMInt8 without kept columns", repr(scheme)
        )


def config_of(schemes: list[Scheme], kept: list[str], dtype: torch.dtype) -> dict[str, Any]:
    """`quantization_config` of a model whose layers are in these schemes; `kept` are linear layers in float.

    Raises InputError where one config cannot say it: 4- and 8-bit layers, or two kinds of 4 bits, in one model.
    """
    kinds = {"int8" if isinstance(s, LLMInt8) else "nf4" if isinstance(s, NF4) else "fp4" for s in schemes}
    thresholds = {s.threshold for s in schemes if isinstance(s, LLMInt8)}
    if len(kinds) > 1 or len(thresholds) > 1:
        got = ", ".join(sorted({repr(s) for s in schemes}))
        raise_all([Problem("bitsandbytes has one format in a model", "format", "layers of one kind", got)])
    kind = kinds.pop()
    return {
        "quant_method": METHOD, "load_in_4bit": kind != "int8", "load_in_8bit": kind == "int8",
        "bnb_4bit_quant_type": "fp4" if kind == "int8" else kind, "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": any(getattr(s, "double", False) for s in schemes),
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."), "llm_int8_threshold": max(thresholds, default=6.0),
        "llm_int8_skip_modules": kept, "llm_int8_has_fp16_weight": False, "llm_int8_enable_fp32_cpu_offload": False,
    }  # fmt: skip
