"""The cells and arms of rank.py, and one run of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import _real
import _rowwise
import torch

import featherweight as fw

LENGTH, EVERY = 192, 10**9
ATTENTION = ("query", "key", "value", "output")
RANKS = (8, 1, 32, 4, 2, 64)
KEPT = (4096, 64, 8, 1)  # ranks at which a full fine-tune is extracted; the first is all of it


@dataclass(frozen=True, eq=False)
class Cell:
    """A base, its rows, and the budget of one run. `words`: what is measured are nats a token, else accuracy.
    `rates` are tried on dev, by method; lr, 3 lr and 9 lr of the method where none are given."""

    name: str
    made: Callable[[int], dict[str, Any]]
    start: Callable[[dict[str, Any], int], tuple[Any, Any]]
    steps: int
    batch: int
    held: tuple[int, int]  # dev rows, test rows
    rates: dict[str, tuple[float, ...]]
    words: bool = False


@dataclass(frozen=True)
class Arm:
    """One way to train. It takes the rate kept for the arm it `follows`, times `rate`; its own is tried where it
    follows none. `adapters` is the dtype that the adapter's own numbers are kept in; `scratch` begins
    with random weights."""

    group: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    follows: str = ""
    rate: float = 1.0
    adapters: torch.dtype = torch.float32
    scratch: bool = False


USUAL = "q,v r 8"


def lora(group: str, rank: int = 8, targets: Any = ("query", "value"), follows: str = "", rate: float = 1.0,
         adapters: torch.dtype = torch.float32, **more: Any) -> Arm:  # fmt: skip
    return Arm(group, "LoRA", {"rank": rank, "targets": targets, **more}, follows, rate, adapters)


ARMS: dict[str, Arm] = {
    **{f"q,v r {r}": lora("rank", r) for r in RANKS},
    "full": Arm("full", "Full"),
    "all linear r 8": lora("where", 8, "linear"),
    "all linear r 1": lora("where", 1, "linear"),
    "q,k,v,o r 2": lora("where", 2, ATTENTION),
    "q r 8": lora("where", 8, ("query",)),
    "q r 1": lora("where", 1, ("query",)),
    "alpha x 4, rate / 4": lora("alpha", alpha=64, follows=USUAL, rate=0.25),
    "alpha / 4, rate x 4": lora("alpha", alpha=4, follows=USUAL, rate=4),
    "alpha x 4": lora("alpha", alpha=64, follows=USUAL),
    "alpha / 4": lora("alpha", alpha=4, follows=USUAL),
    "adapter in bf16": lora("dtype", follows=USUAL, adapters=torch.bfloat16),
    "r 32, alpha 16": lora("stabilized", 32, follows=USUAL, alpha=16),
    "r 32, alpha 16, rank-stabilized": lora("stabilized", 32, follows=USUAL, alpha=16, rank_stabilized=True),
    **{f"{d} dimensions": Arm("intrinsic", "Intrinsic", {"dimension": d, "structure": False})
       for d in (100, 1000, 10_000)},
    "full, from random weights": Arm("scratch", "Full", scratch=True),
    "LayerNorm": Arm("methods", "LayerNorm"), "IA3": Arm("methods", "IA3"), "Houlsby": Arm("methods", "Houlsby"),
    "Pfeiffer": Arm("methods", "Pfeiffer"), "Parallel": Arm("methods", "Parallel", {"reduction": 16}),
    "Compacter": Arm("methods", "Compacter", {"reduction": 8}), "Prompt": Arm("methods", "Prompt"),
    "Prefix": Arm("methods", "Prefix"),
    **{f"Pfeiffer b {b}": Arm("size", "Pfeiffer", {"bottleneck": b}) for b in (1, 16)},
    **{f"Prompt, {n} tokens": Arm("size", "Prompt", {"tokens": n}) for n in (5, 80)},
}  # fmt: skip


def stories(data: dict[str, Any], seed: int) -> tuple[Any, Any]:
    return _real.writer("stories", seed)


MINILM = {"LoRA": (1e-3, 3e-3, 9e-3), "Full": (1e-4, 3e-4, 9e-4)}
E2E = Cell("e2e_nlg, stories260k", _real.e2e_nlg, stories, 60, 8, (60, 120),
           {"LoRA": (5e-3, 1.5e-2, 4.5e-2), "Full": (2e-3, 6e-3, 1.8e-2), "Intrinsic": (1e-2, 3e-2, 9e-2)},
           True)  # fmt: skip
SST2 = Cell("sst2, MiniLM", _real.sst2, _real.classifier, 80, 16, (150, 400), MINILM)
BANKING = Cell("banking77, MiniLM", _real.banking77, _real.classifier, 80, 16, (150, 400), MINILM)
FIRST, THEN = ("rank", "full", "where"), ("alpha", "dtype", "stabilized")
TIERS = (((E2E, (*FIRST, *THEN)), (E2E, ("intrinsic", "scratch"))), ((SST2, FIRST),), ((SST2, THEN),),
         ((BANKING, FIRST),), ((E2E, ("methods", "size")),))  # fmt: skip


@cache
def data_of(cell: Cell) -> dict[str, Any]:
    """Rows of a cell; where there is no test set, dev is split."""
    data = cell.made(cell.steps * cell.batch)
    dev, test = cell.held
    if "test" not in data:
        return data | {"valid": data["valid"][:dev], "test": data["valid"][dev : dev + test]}
    return data | {"valid": _real.chosen(data["valid"], dev), "test": _real.chosen(data["test"], test)}


@cache
def encoded(cell: Cell, split: str) -> list[Any]:
    model, task = cell.start(data_of(cell), 0)
    return _real.encoded({"train": data_of(cell)[split]}, task, model.tokenizer, LENGTH)


def scored(cell: Cell, model: Any, split: str) -> tuple[float, Any]:
    """Accuracy or nats a token, and what remains of each row."""
    rows = encoded(cell, split)
    values, _ = _rowwise.outcomes(model.eval(), rows, cell.words)
    return round(sum(values) / sum(_rowwise.units(rows, cell.words)), 4), _rowwise.bits(values, cell.words)


def one(cell: Cell, label: str, rate: float, seed: int) -> dict[str, Any]:
    """Train an arm and score it. Full fine-tuning is extracted too."""
    arm = ARMS[label]
    torch.manual_seed(seed)
    model, task = cell.start(data_of(cell), seed)
    if arm.scratch:
        model = anew(model)
    fw.attach(model, getattr(fw, arm.kind)(**arm.options))
    for adapter in lows(model):
        adapter.to(arm.adapters)
    found = _real.train_ours(model, data_of(cell), task, None, steps=cell.steps, batch=cell.batch, lr=rate, seed=seed,
                             length=LENGTH, tokenizer=model.tokenizer, log=EVERY)  # fmt: skip
    dev, _ = scored(cell, model, "valid")
    test, rows = scored(cell, model, "test")
    found |= {"dev": dev, "test": test, "rows": rows}
    return found | ({"extracted": extracted(cell, fw.merge(model), seed)} if label == "full" else {})


def anew(model: Any) -> Any:
    """The same shape with the weights that its class begins with."""
    fresh = type(model)(model.config)
    fresh.tokenizer = model.tokenizer
    return fresh


def lows(model: Any) -> list[Any]:
    """The model's low-rank adapters; a head is none."""
    from featherweight.core.state import adapters
    from featherweight.methods.lowrank import LowRank

    return [a for a in adapters(model, "default").values() if isinstance(a, LowRank)]


def extracted(cell: Cell, tuned: Any, seed: int) -> dict[str, Any]:
    """The spectrum of what full fine-tuning changed in the blocks, and what its LoRA of some ranks scores. Singular
    values fall, so that the LoRA of a lower rank is the first columns of B."""
    base, _ = cell.start(data_of(cell), seed)
    made = fw.extract(tuned, base, KEPT[0])
    inner = [s for s in made.spectra if re.search(r"\.layers?\.\d", s.path)]
    whole = sum(s.energy for s in inner)
    found: dict[str, Any] = {"share": {}, "test": {}, "rows": {}}
    for rank in KEPT:
        shorten(base, rank)
        with fw.merged(base):
            found["test"][str(rank)], found["rows"][str(rank)] = scored(cell, base, "test")
        found["share"][str(rank)] = round(sum(s.energy * s.share(rank) for s in inner) / whole, 4)
    ninety = sorted(s.rank_for(0.9) for s in inner)
    found |= {"rank_90": ninety[len(ninety) // 2], "rank_90_most": ninety[-1]}
    return found | {"full_rank": max(min(s.shape) for s in inner)}


@torch.no_grad()
def shorten(model: Any, rank: int) -> None:
    for adapter in lows(model):
        adapter.B[:, rank:] = 0


def tried(cell: Cell, label: str) -> tuple[float, ...]:
    """The rates of an arm that follows none."""
    kind = ARMS[label].kind
    lr = getattr(fw, kind).lr
    return cell.rates.get(kind) or (lr, 3 * lr, 9 * lr)
