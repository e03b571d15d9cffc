"""`load`: an adapter from disk onto its base, ours or PEFT's, strictly: every tensor finds its place or nothing is
changed.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, unpacked
from featherweight.checkpoint.exchange import OUT, exchangeable
from featherweight.checkpoint.files import CONFIG, WEIGHTS, present, read_json, read_tensors
from featherweight.checkpoint.fingerprint import differences, strangeness
from featherweight.checkpoint.peft.common import SHARED, base_name, brought, wants_head
from featherweight.checkpoint.peft.names import PREFIX
from featherweight.checkpoint.peft.table import for_type
from featherweight.checkpoint.record import Record, digest, from_metadata
from featherweight.checkpoint.save import entries_of
from featherweight.core.attach import attach, detach
from featherweight.core.errors import Problem, did_you_mean, raise_all
from featherweight.core.host import steady
from featherweight.core.method import Method
from featherweight.core.state import adapters, take, tensors_of
from featherweight.core.switch import switch, switch_of
from featherweight.methods.starts import spared

log = logging.getLogger("featherweight")


@dataclass(frozen=True)
class Stored:
    """An adapter folder, read. `record` is None for a file of another library, and for one whose JSON was edited
    since.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    record: Record | None


def read(folder: str | os.PathLike[str], name: str = "default") -> Stored:
    """Read an adapter folder (or `folder/name` where that holds one). Raises InputError for what is missing or
    damaged.
    """
    place = find(Path(folder), name)
    config = read_json(place / CONFIG)
    tensors, metadata = read_tensors(place / WEIGHTS)
    record = from_metadata(metadata, str(place / WEIGHTS))
    if record is not None and record.config != digest(config):
        log.warning("%s was edited after saving: it is taken at its word, the method on record is not", place / CONFIG)
        record = None
    return Stored(place, config, tensors, record)


def find(folder: Path, name: str) -> Path:
    inner = folder / name
    if (inner / CONFIG).is_file() and (name != "default" or not (folder / CONFIG).is_file()):
        return inner
    present(folder / CONFIG)
    return folder


def load(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str = "default",
    *,
    train: bool = False,
    stack: bool = False,
    strict_base: bool = True,
    replace: bool = False,
) -> nn.Module:
    """Load an adapter onto `model`, in place, and make it the only active one (`stack=True`: the top one).

    It is for use unless `train=True`. `replace=True` puts the file's tensors into the adapter of that name which is
    attached, and changes nothing else: compiled graphs, optimizers and rows stay valid; it must be built alike.
    Reads PEFT's folders, AdapterHub's and ours. Raises one InputError over all missing, extra, misshapen and misspelt
    tensors, and for a base other than the one on record (`strict_base=False` only warns); the model is then as it was.
    """
    from featherweight.checkpoint import adapterhub

    if adapterhub.holds(place := find(Path(folder), name)):
        raise_all([Problem("AdapterHub's folders cannot replace", str(place), fix=OUT)] if replace else [])
        return adapterhub.load(model, place, name, train=train, stack=stack)
    stored = read(folder, name)
    with steady(), undone(model, name), quiet_chance(model):
        check_base(model, stored, strict_base)
        method, head = meant(model, stored)
        parts(model, stored.folder, method, strict_base)
        if replace:
            still = "replacing keeps the stack and the marks"
            raise_all(
                Problem(still, n, got="True", fix="fw.switch") for n, on in (("stack", stack), ("train", train)) if on
            )
            exchangeable(model, name, method, head)
        else:
            attach(model, method, name, head=head, stack=stack, train=train)
        fill(model, name, stored, give=not replace)
    return model


def fill(model: nn.Module, name: str, stored: Stored, give: bool) -> None:
    """Put a file's tensors into the adapter that is attached for them."""
    made = adapters(model, name)
    own = tensors_of(made)
    entries = entries_of(model, name, made, own)
    tensors = without_copies(model, used(stored), entries, str(stored.folder / WEIGHTS))
    take(model, made, own, unpacked(entries, tensors, WEIGHTS), give)


def parts(model: nn.Module, folder: Path, method: Method, strict_base: bool) -> None:
    """Load the adapters that the method works over, where they lie beside it and are not attached yet."""
    for name in method.needs:
        if name not in switch_of(model).attached and (folder / name / CONFIG).is_file():
            load(model, folder / name, name, strict_base=strict_base)


def used(stored: Stored) -> Mapping[str, Tensor]:
    """The tensors of a file without those that a foreign library writes and never uses."""
    codec = None if stored.record else for_type(str(stored.config["peft_type"]), CONFIG)
    return codec.used(stored.config, stored.tensors) if codec and codec.used else stored.tensors


def check_base(model: nn.Module, stored: Stored, strict: bool) -> None:
    """Raise InputError where the base is another one than on record; warn instead where not `strict`."""
    if stored.record is None:
        return
    problems = differences(model, stored.record.base, brought(model, stored.tensors), base_name(model) or "")
    strange = strangeness(model, stored.record.base)
    if strange is not None and Method.from_dict(stored.record.method).rounded:
        fix = "quantize the base the same way first, or give strict_base=False to go on all the same"
        problems.append(replaced(strange, what="the adapter makes up for what one number format loses", fix=fix))
    elif strange is not None:
        log.warning("%s", strange)
    if strict:
        raise_all(problems)
    for problem in problems:
        log.warning("%s", problem)


def meant(model: nn.Module, stored: Stored) -> tuple[Method, bool]:
    """The method and whether a head goes with it: on record, or read out of PEFT's JSON."""
    if stored.record is not None:
        return Method.from_dict(stored.record.method, where=f"{WEIGHTS}:method"), stored.record.head
    where = CONFIG
    codec = for_type(str(stored.config.get("peft_type", "")), where)
    note_unknown(stored.config, (*SHARED, *codec.fields), where)
    return codec.method(model, stored.config, where), wants_head(model, stored.config, where)


def note_unknown(config: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Keys of newer or other writers are tolerated, and said."""
    for key in config:
        if key not in known and config[key] not in (None, False, {}, []):
            log.warning("%s:%s is not known here and ignored (%s)", where, key, did_you_mean(key, known))


@contextmanager
def undone(model: nn.Module, name: str) -> Iterator[None]:
    """On an error take the adapter off again and put back what was active."""
    before = switch_of(model)
    taken, active = set(before.attached), before.active
    try:
        yield
    except BaseException:
        new = [n for n in reversed(switch_of(model).attached) if n not in taken]
        for each in new:
            detach(model, each)
        if new:
            switch(model, active)
        raise


@contextmanager
def quiet_chance(model: nn.Module) -> Iterator[None]:
    """Attach makes initial values that are overwritten at once: the caller's random state is left as it was, and no
    weight is decomposed for them.
    """
    cards = []
    if torch.cuda.is_initialized():  # no tensor is on a card before
        cards = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cards), spared():
        yield


def without_copies(
    model: nn.Module, tensors: Mapping[str, Tensor], entries: list[Entry], where: str
) -> dict[str, Tensor]:
    """Leave out frozen tensors of the base that PEFT saves along (embeddings); one that differs from the base is
    an error.
    """
    wanted = {e.key for e in entries}
    if wanted.issuperset(tensors):
        return dict(tensors)
    base = dict(model.named_parameters(remove_duplicate=False))
    copies = {k: base[n] for k in tensors if k not in wanted and (n := plain_name(k)) in base}
    raise_all(
        Problem(
            "a changed copy of a tensor of the base, which no method here expresses",
            f"{where}:{key}",
            fix="merge the adapter into its base with peft and load the merged model",
        )
        for key, own in copies.items()
        if own.shape != tensors[key].shape or not torch.equal(own.detach().cpu().to(tensors[key].dtype), tensors[key])
    )
    return {k: t for k, t in tensors.items() if k not in copies}


def plain_name(key: str) -> str:
    return key.removeprefix(PREFIX).replace(".base_layer.", ".")
