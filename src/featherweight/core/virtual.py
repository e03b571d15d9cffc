"""Virtual tokens: one layout for all rows of a batch, made where a model has looked up its embeddings.

    decoder   pads  P₁ … Pₙ  x₁ … xₜ     beside the first real token (sliding windows); the last place stays the last
    encoder   P₁ … Pₙ  x₁ … xₜ  pads     from the first place on, which heads read and positions count from

Every row has its own tokens, as many as it has; shorter rows get more pads. Masks, position ids and token types grow
along. What comes out is cut back to the input's length (`hidden_states` too); attentions and the cache stay whole.

    seat                                   what else happens
    trunk (decoders, encoders by token)    cut back: head, loss and pooling by `input_ids` see the input's length
    the whole model (encoders that         its head reads the states as they are
      classify sequences)
    encoder                                grows, and the decoder's mask of it with it
    decoder of an encoder-decoder          as a trunk, where it has tokens of its own

A method gives each seat a `Virtual`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core.adapter import Adapter
from featherweight.core.anatomy import find_blocks
from featherweight.core.base import Base
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import base_modules, frozen_class
from featherweight.core.order import (
    Batch,
    Frame,
    cut_back,
    known,
    ordered,
    positions,
    returned,
    standing_before,
)
from featherweight.core.room import beyond, places
from featherweight.core.rows import Plan, nest
from featherweight.core.site import Site

Groups = Sequence[tuple[Tensor | None, tuple[Adapter, ...]]]
LAID = (
    *("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids"),
    *("labels", "encoder_hidden_states", "encoder_attention_mask"),
)  # inputs that are laid out, or that have another length of their own


def seats(model: nn.Module) -> list[Site]:
    """Where virtual tokens enter a model: role "tokens", and "across" for a decoder that looks at their encoder.

    Raises InputError for a model that reads no token ids.
    """
    base: Any = getattr(model, "base_model", model)
    if encodes(model):
        found = [(base.get_encoder(), "tokens"), (base.get_decoder(), "across")]
    else:
        found = [(model if reads_states(model) else trunk(model), "tokens")]
    host = found[0][0]
    if not reads(host):
        raise InputError(
            Problem(
                "reads no token embeddings among which virtual tokens could stand",
                type(model).__name__,
                fix="use a method that sits in its layers, such as Prefix or LoRA",
            )
        )
    if float(getattr(host, "embed_scale", None) or 1) != 1:
        raise InputError(
            Problem("scales its embeddings outside of their module", type(model).__name__, fix="use Prefix instead")
        )
    paths = {id(m): p for p, m in base_modules(model)}
    return [Site(paths[id(m)], m, role) for m, role in found]


def encodes(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def reads(module: nn.Module) -> bool:
    return {"input_ids", "inputs_embeds"} <= set(parameters(module))


def trunk(model: nn.Module) -> nn.Module:
    """The innermost module that reads tokens and holds all blocks: some of those around it are never called."""
    blocks = {id(b) for _, b in find_blocks(model)}
    found = model
    while True:
        inside = [m for m in found.children() if blocks <= {id(b) for _, b in base_modules(m)} and reads(m)]
        if not inside or not isinstance(getattr(inside[0], "get_input_embeddings", lambda: None)(), nn.Module):
            return found
        found = inside[0]


def reads_states(model: nn.Module) -> bool:
    """Whether the model classifies sequences with an encoder: its head reads the states themselves, the first place."""
    whole = "ForSequenceClassification" in frozen_class(model).__name__ and "past_key_values" not in parameters(model)
    return whole and reads(model) and trunk(model) is not model


def parameters(module: nn.Module) -> tuple[str, ...]:
    """The names that a module's forward takes, behind whatever wraps it."""
    forward = frozen_class(module).forward
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    code = getattr(forward, "__code__", None)  # a compiled module has none
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount] if code else ()


def frame(site: Site) -> Frame:
    """How the host at a seat of tokens takes a sequence."""
    host: Any = site.module
    inner = host if encodes(host) else trunk(host)
    decoding = [m.is_decoder for _, m in base_modules(inner) if hasattr(m, "is_decoder")]
    tables = [m for p, m in base_modules(inner) if isinstance(m, nn.Embedding) and "position" in p]
    pads = [m.padding_idx for m in tables if m.padding_idx is not None]
    causal = "past_key_values" in parameters(inner) and all(decoding)
    return Frame(
        parameters(host),
        int(host.get_input_embeddings().weight.shape[1]),
        causal=causal,
        cut=not encodes(host) or site.role == "across",
        offset=pads[0] + 1 if pads else 0,
        rigid=causal and bool(tables) and "position_ids" not in parameters(host),
        places=places(inner),
    )


class Virtual(Adapter):
    """Adds `count` tokens and moves positions by `shift` more; `frame` is its seat's.

    On a decoder `across` is how many its encoder has.
    """

    shift: int = 0

    def __init__(self, frame: Frame, count: int = 0, across: int = 0):
        super().__init__()
        self.frame, self.count, self.across = frame, count, across

    def tokens(self) -> Tensor | None:
        """(count, d), in the space of the embeddings; None for none."""
        return None

    def places(self, given: dict[str, Any], mask: Tensor) -> Tensor | None:
        """(rows, count): the place in the input that each stands before, t for behind the last; None: the first token.

        `given` holds the rows' inputs by name, `mask` (rows, t) what is no pad. Only asked when the cache is empty.
        """
        return None

    @staticmethod
    def joint(host: Any, groups: Groups, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return lay_out(host, groups, args, kwargs)


def beneath(host: Any, groups: Groups, rows: int) -> Callable[..., Any]:
    """The host with what else sits on it."""
    rest = [tuple(a for a in stack if not isinstance(a, Virtual)) for _, stack in groups]
    if len(groups) == 1 or not any(rest):
        return Base(host, rest[0])
    index = [i for i, _ in groups if i is not None]
    plan = Plan(None, rows, index[0].device, list(zip(index, rest, strict=True)), torch.cat(index).argsort())
    return lambda **given: nest(host, plan, (), given)


def lay_out(host: Any, groups: Groups, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The host over its input with every row's virtual tokens in it."""
    own = [(rows, [a for a in stack if isinstance(a, Virtual)]) for rows, stack in groups]
    shape = next(a.frame for _, stack in own for a in stack)
    given = dict(zip(shape.names, args, strict=False)) | kwargs
    like = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
    if like is None:
        raise InputError(Problem("neither input_ids nor inputs_embeds", type(host).__name__))
    batch = Batch(given, own, counts(own, "count"), like.shape[0], like.shape[1], like.device)
    past = given.get("past_key_values")
    seen = int(past.get_seq_length()) if past is not None else 0
    if batch.most:
        check(batch, seen, past)
    if shape.rigid and not batch.even:
        what = "counts its own positions: its rows must have equally many virtual tokens"
        raise InputError(Problem(what, type(host).__name__, got=", ".join(map(str, batch.counts))))
    changed, back = arranged(host, batch, shape, seen)
    changed |= across(batch)
    raise_all(beyond(host, batch, shape, changed.get("position_ids"), seen))
    out = beneath(host, groups, batch.rows)(**given | changed)
    return out if back is None or not shape.cut else cut_back(out, back, batch.rows, batch.most + batch.length)


def counts(groups: Sequence[tuple[Any, Sequence[Any]]], of: str) -> list[int]:
    return [sum(getattr(a, of) for a in stack) for _, stack in groups]


def check(batch: Batch, seen: int, past: Any) -> None:
    """Raise InputError for inputs among which virtual tokens cannot be laid."""
    given, found = batch.given, []
    mask, places = given.get("attention_mask"), given.get("position_ids")
    if getattr(past, "is_compileable", False):
        what = "a static cache has neither room nor mask for virtual tokens"
        found.append(Problem(what, "past_key_values", got=type(past).__name__, fix='cache_implementation="dynamic"'))
    elif mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        got = str(tuple(mask.shape)) if isinstance(mask, Tensor) else type(mask).__name__
        found.append(Problem("virtual tokens need a plain mask", "attention_mask", "(rows, length)", got))
    elif mask is not None and mask.shape[1] != batch.length + max(seen - batch.most, 0):
        want, got = f"{batch.length + max(seen - batch.most, 0)} places", f"{mask.shape[1]}"
        found.append(Problem("the mask does not fit the input and the cache", "attention_mask", want, got))
    if not seen:
        found += [
            Problem("has a value for each token, and none for virtual ones", name)
            for name, v in given.items()
            if name not in LAID and isinstance(v, Tensor) and v.dim() > 1 and v.shape[:2] == (batch.rows, batch.length)
        ]
    if places is not None and (places.dim() != 2 or (mask is None and restarts(places))):
        what = "virtual tokens stand in rows of one example, with positions of one axis"
        found.append(Problem(what, "position_ids", got=str(tuple(places.shape)), fix="leave packing out"))
    if found:
        raise InputError(*found)


def restarts(places: Tensor) -> bool:
    return not torch.compiler.is_compiling() and bool((places[:, 1:] <= places[:, :-1]).any())


def arranged(host: Any, batch: Batch, shape: Frame, seen: int) -> tuple[dict[str, Any], Any]:
    """The inputs that change, and what of (rows, N+t) stands for the input's places; None where nothing grew."""
    given, N = batch.given, batch.most
    real, on = known(batch, seen), batch.own(shape.causal)
    at = None if seen or not N else standing_before(batch, real, shape.causal)
    plain = given.get("attention_mask") is None and at is None and batch.even
    order = ordered(real, on, at, shape.causal)
    wide = torch.cat([on.to(real.dtype), real], 1).gather(1, order)
    changed = positions(batch, shape, order, wide, on, at, seen, plain)
    if N and not plain:
        changed["attention_mask"] = wide
    if seen or not N:
        return changed, None
    x = given.get("inputs_embeds")
    x = host.get_input_embeddings()(given["input_ids"]) if x is None else x
    whole = torch.cat([batch.tokens(shape.width, shape.causal).to(x.dtype), x], 1)
    laid = whole if plain else whole.gather(1, order[..., None].expand_as(whole))
    changed |= {"input_ids": None, "inputs_embeds": laid}
    if given.get("token_type_ids") is not None:
        changed["token_type_ids"] = F.pad(given["token_type_ids"].expand(batch.rows, -1), (N, 0)).gather(1, order)
    return changed, returned(order, N, shape.causal, at is None, plain)


def across(batch: Batch) -> dict[str, Any]:
    """A decoder's mask of its encoder's states, grown as they did."""
    states, mask = batch.given.get("encoder_hidden_states"), batch.given.get("encoder_attention_mask")
    other = counts(batch.groups, "across")
    if states is None or not any(other) or (mask is None and len(set(other)) == 1):
        return {}
    over = Batch({}, batch.groups, other, states.shape[0], states.shape[1], states.device)
    if mask is None:
        mask = torch.ones(over.rows, over.length - over.most, dtype=torch.long, device=over.device)
    return {"encoder_attention_mask": mask if mask.shape[-1] == over.length else widened(over, mask)}


def widened(batch: Batch, mask: Tensor) -> Tensor:
    """(rows, s) -> (rows, N+s)."""
    if mask.dim() != 2 or mask.shape[1] + batch.most != batch.length:
        want = f"(rows, {batch.length - batch.most})"
        what = "the mask does not fit the encoder's states"
        raise InputError(Problem(what, "encoder_attention_mask", want, str(tuple(mask.shape))))
    on = batch.own(causal=False)
    return torch.cat([on.to(mask.dtype), mask], 1).gather(1, ordered(mask, on, None, causal=False))
