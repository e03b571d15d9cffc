"""Copies of the base's own tensors, one for each tensor however many modules share it (tied embeddings)."""

from collections.abc import Sequence

import torch
from torch import nn

from featherweight.core.adapter import Replace
from featherweight.core.base import read
from featherweight.core.encoded import untrainable
from featherweight.core.errors import raise_all
from featherweight.core.site import Site

HALF = (torch.float16, torch.bfloat16)
Copies = dict[tuple[int, str], nn.Parameter]  # (the tensor, its slice) -> its one copy; empty at the start of an attach


def replacement(site: Site, made: Copies, names: Sequence[str] | None = None) -> Replace:
    """A Replace adapter over the tensors `names` of a site (all of its own where None).

    Raises InputError for tensors that are kept as codes.
    """
    module = site.module
    raise_all(untrainable(str(site), module, names))
    held = names if names is not None else [n for n, p in module._parameters.items() if p is not None]
    return Replace({n: copy_of(site, n, made) for n in held})


def copy_of(site: Site, name: str, made: Copies) -> nn.Parameter:
    own = site.module._parameters[name]
    key = (id(own), "" if site.rows is None else site.role)
    if key not in made:
        tensor = read(site.module, name) if site.whole else getattr(site.host, name)
        made[key] = nn.Parameter(tensor.detach().clone().to(master(tensor.dtype)))
    return made[key]


def master(dtype: torch.dtype) -> torch.dtype:
    """The dtype trainable tensors are kept in: fp32 beside a 16-bit base, whose steps would be lost to rounding."""
    return torch.float32 if dtype in HALF else dtype
