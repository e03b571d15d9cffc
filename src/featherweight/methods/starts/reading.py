"""What layers read: the spectra of their inputs, over batches that run through the model.

Layers that read the very same tensor (query, key and value do) share one spectrum. Padding is left out and, where
labels are for tokens, what carries none.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem, listed
from featherweight.core.site import Site
from featherweight.methods.lowrank import LowRank
from featherweight.methods.starts.spectrum import Spectrum


@dataclass(eq=False)
class Place:
    """One adapter: its site, how many directions it may have, and the place whose inputs it shares (itself, first)."""

    site: Site
    adapter: LowRank
    most: int
    lead: "Place | None" = None
    spectrum: Spectrum | None = None
    rank: int = 0

    @property
    def directions(self) -> Spectrum:
        found = (self.lead or self).spectrum
        assert found is not None
        return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module's mode is put back."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


def grouped(model: nn.Module, places: list[Place], batch: Mapping[str, Tensor]) -> list[Place]:
    """Find which places read the very same tensor (query, key and value do): they share one spectrum."""
    seen: list[tuple[Any, Place]] = []
    called: set[int] = set()

    def note(p: Place, x: Tensor) -> None:
        called.add(id(p))
        p.lead = p.lead or next((q for r, q in seen if r() is x and q is not p), None)
        if p.lead is None:
            seen.append((ref(x), p))

    with hooked(places, note):
        run(model, batch)
    idle = [str(p.site) for p in places if id(p) not in called]
    if idle:
        raise InputError(
            Problem(
                "the batches do not reach these layers", "EVA", got=listed(idle), fix="leave them out of the targets"
            )
        )
    leads = [p for p in places if p.lead is None]
    for p in leads:
        p.spectrum = Spectrum(max(q.most for q in places if (q.lead or q) is p))
    return leads


@contextmanager
def hooked(places: Iterable[Place], note: Any) -> Iterator[None]:
    """Call `note(place, input)` whenever the module of a place is called."""
    handles = [
        p.site.module.register_forward_pre_hook(
            lambda _, args, kwargs, p=p: note(p, (*args, *kwargs.values())[0]), with_kwargs=True
        )
        for p in places
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def listening(places: Iterable[Place], masks: Mapping[torch.Size, Tensor]) -> Iterator[None]:
    """Add what the places read to their spectra; batches of fewer tokens than directions are passed over."""

    def note(p: Place, x: Tensor) -> None:
        mask = masks.get(x.shape[:-1])
        rows = (x.flatten(0, -2) if mask is None else x[mask]).float()
        if len(rows) >= p.directions.size:
            p.directions.add(rows)

    with hooked(places, note):
        yield


def rows_of(batch: Mapping[str, Tensor]) -> dict[torch.Size, Tensor]:
    """The tokens to count, by shape of the batch: no padding and, where labels are for tokens, none without a label."""
    masks: dict[torch.Size, Tensor] = {}
    for name in ("attention_mask", "decoder_attention_mask", "labels"):
        given = batch.get(name)
        if given is not None and given.dim() == 2 and not given.is_floating_point():
            keep = given != -100 if name == "labels" else given.bool()
            masks[keep.shape] = masks[keep.shape] & keep if keep.shape in masks else keep
    return masks


def run(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """A forward pass; labels only for models that make the decoder's inputs of them."""
    needed = getattr(getattr(model, "config", None), "is_encoder_decoder", False) and "decoder_input_ids" not in batch
    model(**{k: v for k, v in batch.items() if k != "labels" or needed})
