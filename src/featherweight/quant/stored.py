"""Whether packed tensors are what a scheme says it stores, and the note beside them that says which scheme that is.

<path>.scheme   uint8, JSON: {"type": "nf4", "block": 64, "shape": [768, 768]}
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import Problem, did_you_mean
from featherweight.quant.each import codec
from featherweight.quant.scheme import Scheme


def form(scheme: Scheme, shape: tuple[int, ...]) -> dict[str, Any]:
    """All that decoding needs to know, defaults too: those may change between versions."""
    return {"type": type(scheme).__name__.lower()} | {
        f.name: getattr(scheme, f.name) for f in fields(scheme)
    } | {"shape": list(shape)}  # fmt: skip


def written(scheme: Scheme, shape: tuple[int, ...]) -> Tensor:
    """The note, as a tensor (bytes of the JSON,)."""
    text = json.dumps(form(scheme, shape), default=str)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def misfits(
    scheme: Scheme, shape: tuple[int, ...], packed: Mapping[str, Tensor], prefix: str, record: Tensor | None = None
) -> list[Problem]:
    """What is wrong with packed tensors, keys after `prefix`: all of it. Tensors that are missing are not looked for
    where there are none at all.
    """
    problems = [] if record is None else another(scheme, shape, record, prefix)
    if problems:
        return problems  # tensors of another format differ in everything else, too
    layout = codec(scheme, shape).layout(shape)
    for name in [n for n in packed if n not in layout]:
        fix = did_you_mean(name, layout)
        problems.append(Problem(f"not a packed tensor of {scheme!r}", prefix + name, fix=fix))
    for name, (dtype, dims) in layout.items():
        tensor = packed.get(name)
        if tensor is None:
            if packed:
                problems.append(Problem(f"missing packed tensor of {scheme!r}", prefix + name))
        elif (tensor.dtype, tuple(tensor.shape)) != (dtype, tuple(dims)):
            wanted, got = f"{dtype} {tuple(dims)}", f"{tensor.dtype} {tuple(tensor.shape)}"
            problems.append(Problem(f"not what {scheme!r} stores for {shape}", prefix + name, wanted, got))
        elif tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            problems.append(Problem(f"{bad} of {tensor.numel()} values are not finite", prefix + name, "finite scales",
                                    fix="the weight held NaN or inf, or the file is damaged"))  # fmt: skip
    return problems


def another(scheme: Scheme, shape: tuple[int, ...], record: Tensor, prefix: str) -> list[Problem]:
    """The problem of a note that says another scheme or shape, or nothing that can be read."""
    mine = json.loads(json.dumps(form(scheme, shape), default=str))
    try:
        theirs = json.loads(bytes(record.cpu().tolist()))
    except (ValueError, TypeError) as error:
        return [Problem("cannot be read", f"{prefix}scheme", f"JSON such as {mine}", str(error))]
    if theirs == mine:
        return []
    return [Problem("codes of another scheme", f"{prefix}scheme", str(mine), str(theirs),
                    "quantize the model the way the file was")]  # fmt: skip
