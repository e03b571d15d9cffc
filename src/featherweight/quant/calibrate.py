"""Calibration: every module is encoded from the inputs that it will have, those of a model whose earlier modules
compute on their codes already.

    for each block, in order     for each set of modules that read the same tensor
        run the batches, each module's scheme watching its inputs  ->  encode  ->  the module runs over its codes

One set's statistics are held at a time. Blocks are driven one by one (`chain`); where a model does not allow that,
it runs whole for every set, which gives the same and takes longer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.anatomy import find_blocks
from featherweight.core.errors import Problem, raise_all
from featherweight.core.part import Part
from featherweight.core.site import kind_of
from featherweight.core.switch import switch, switch_of
from featherweight.quant.chain import Chain, Undrivable
from featherweight.quant.scheme import Packed, Scheme

Batch = Mapping[str, Any]
Run = Callable[[int], Any]  # the number of a batch -> that batch goes through what is being calibrated


def calibrated(
    model: nn.Module, places: Sequence[Any], scheme: Scheme, batches: Iterable[Batch], sequential: bool = True,
    told: Callable[[int, int], None] | None = None,
) -> dict[str, Packed]:  # fmt: skip
    """The packed tensors of every place (something with `path` and `module`) by path; the model is left as it was.

    batches: mappings, the model's inputs; positions that an attention mask leaves out are not seen. Not `sequential`:
    all modules of a block are seen at once, in one pass instead of about four. Adapters are off, dropout too.
    told: called with the places that are done and the number of all.
    Raises InputError with every place that no batch reaches, before anything is encoded.
    """
    held = list(batches)
    raise_all(problems(held, places))
    with quiet(model), ExitStack() as stack:
        work = Calibration(model, scheme, held, sequential, stack)
        for blocks, group in groupby(work.in_order(places), work.chain_of):
            work.settle_chain(blocks, list(group), lambda: told and told(len(work.packed), len(places)))
    return work.packed


def problems(batches: list[Any], places: Sequence[Any]) -> Iterator[Problem]:
    if not batches:
        yield Problem("nothing to calibrate on", "batches", "a few batches of the model's inputs", "none")
    for i, batch in enumerate(batches):
        if not isinstance(batch, Mapping):
            yield Problem("not a batch", f"batches[{i}]", "a mapping of the model's inputs", type(batch).__name__)
    for place in places:
        if kind_of(place.module) != "linear":
            what, got = "calibration is for linear layers", type(place.module).__name__
            yield Problem(what, place.path, got=got, fix="skip it, or take another scheme")


class Calibration:
    """One pass of calibration; `packed` grows as places are settled."""

    def __init__(self, model: nn.Module, scheme: Scheme, batches: list[Batch], sequential: bool, stack: ExitStack):
        self.model, self.scheme, self.batches = model, scheme, batches
        self.sequential, self.stack = sequential, stack
        self.packed: dict[str, Packed] = {}
        self.pair = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self.batch: Batch = {}  # the one that is running
        self.chains: dict[str, tuple[tuple[str, nn.Module], ...]] = {}
        for path, block in find_blocks(model):
            self.chains[stem(path)] = (*self.chains.get(stem(path), ()), (path, block))

    def chain_of(self, place: Any) -> tuple[tuple[str, nn.Module], ...]:
        """The blocks among which a place is, none where it is outside of them."""
        return next((c for name, c in self.chains.items() if place.path.startswith(f"{name}.")), ())

    def in_order(self, places: Sequence[Any]) -> list[Any]:
        """The places as the model comes to them. Raises InputError where it never does."""
        met: dict[str, None] = {}
        with watching({p: partial(met.setdefault, p.path) for p in places}):
            for i in range(len(self.batches)):
                self.whole(i)
                if len(met) == len(places):
                    break
        raise_all(
            Problem("never called on the calibration data", p.path, fix="give data that reach it, or skip it")
            for p in places
            if p.path not in met
        )
        order = {path: i for i, path in enumerate(met)}
        return sorted(places, key=lambda p: order[p.path])

    def whole(self, i: int) -> Any:
        self.batch = self.batches[i]
        return self.model(**self.batch)

    def settle_chain(self, blocks: Sequence[tuple[str, nn.Module]], places: list[Any], done: Callable[[], Any]) -> None:
        """Settle places that are all in these blocks, or outside of any; `done` is called after each block."""
        try:
            runs = [partial(self.whole, i) for i in range(len(self.batches))]
            chain = Chain.of([b for _, b in blocks], runs) if blocks else None
        except Undrivable:
            chain = None
        for number, (path, _) in enumerate(blocks or [("", self.model)]):
            inside = [p for p in places if p.path.startswith(f"{path}.") or not blocks]
            self.settle(inside, self.whole if chain is None else partial(self.driven, chain, number))
            done()
            if chain is not None:
                chain.step(number)

    def driven(self, chain: Chain, number: int, i: int) -> Any:
        self.batch = self.batches[i]
        return chain.run(number, i)

    def settle(self, places: list[Any], run: Run) -> None:
        for stage in self.stages(places, run):
            seen = {p: self.scheme.watch(Part(p.module).in_features) for p in stage}
            with watching({p: partial(self.note, watch) for p, watch in seen.items()}):
                for i in range(len(self.batches)):
                    run(i)
            for place in stage:
                W = Part(place.module).weight.detach().contiguous()
                packed = self.packed[place.path] = self.scheme.encode(W, seen.pop(place))
                self.stack.enter_context(standing_in(place.module, self.scheme, packed, tuple(W.shape)))  # type: ignore[arg-type]

    def note(self, watch: Any, x: Tensor) -> None:
        watch.add(tokens(x, self.batch, self.pair))

    def stages(self, places: list[Any], run: Run) -> list[list[Any]]:
        """The places in sets that read the same tensor, as the first batch comes to them; what it does not reach is
        last.
        """
        if not self.sequential or len(places) < 2:
            return [places] if places else []
        read: dict[Any, Tensor] = {}
        with watching({p: partial(read.setdefault, p) for p in places}):
            run(0)
        sets = [list(group) for _, group in groupby(read, lambda p: id(read[p]))]
        rest = [p for p in places if p not in read]
        return [*sets, rest] if rest else sets


def stem(path: str) -> str:
    return path.rpartition(".")[0]


def tokens(x: Tensor, batch: Batch, pair: bool = False) -> Tensor:
    """x (..., in) -> (tokens, in), without the padding where it is known which mask of the batch is meant. `pair`:
    the model has a decoder of its own, whose inputs may be made from the labels.
    """
    sides = {"attention_mask": ("input_ids", "inputs_embeds")}
    if pair:
        sides["decoder_attention_mask"] = ("decoder_input_ids", "labels")
    fits = [m for m, ids in sides.items() if any(n in batch and batch[n].shape[:2] == x.shape[:-1] for n in ids)]
    mask = batch.get(fits[0]) if len(fits) == 1 else None
    if isinstance(mask, Tensor) and mask.shape == x.shape[:-1]:
        return x[mask.bool()]
    return x.reshape(-1, x.shape[-1])


@contextmanager
def watching(notes: Mapping[Any, Callable[[Tensor], Any]]) -> Iterator[None]:
    """Call each note with the input of its place's module whenever that is called."""

    def hook(note: Callable[[Tensor], Any]) -> Any:
        return lambda module, args, kwargs: (note((*args, *kwargs.values())[0].detach()), None)[1]

    hooks = [p.module.register_forward_pre_hook(hook(note), with_kwargs=True) for p, note in notes.items()]
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


@contextmanager
def standing_in(module: nn.Module, scheme: Scheme, packed: Packed, shape: tuple[int, int]) -> Iterator[None]:
    """A linear layer that computes on its codes for a while; its weight stays where it is."""
    own = vars(module)
    before = own.get("forward")
    own["forward"] = lambda x: scheme.linear(x, packed, shape, module.bias)  # type: ignore[arg-type]
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation without gradients, adapters and caches; everything is put back."""
    training = [m for m in model.modules() if m.training]
    configs: list[Any] = [getattr(m, "config", None) for m in model.modules()]
    caching = {id(c): c for c in configs if getattr(c, "use_cache", False)}
    with ExitStack() as stack:
        if switch_of(model).attached:
            stack.enter_context(switch(model, None))
        stack.enter_context(torch.no_grad())
        model.eval()
        for config in caching.values():
            config.use_cache = False
        try:
            yield
        finally:
            for config in caching.values():
                config.use_cache = True
            for m in training:
                m.training = True
