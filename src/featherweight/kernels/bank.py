"""Many LoRA adapters in one batch: their matrices stacked, multiplied group by group in two calls.

    y = x Wᵀ + b          y_g += (x_g A_gᵀ) (s_g B_g)ᵀ     for all groups g at once

x_g (k, t, in)   the rows of group g, k of the largest group      A (G, r, in)   s Bᵀ (G, r, out), r the widest rank

    rows    a  b  a  -  b        take   0 2 | 1 4      the rows, group after group
    groups  a: 0 2   b: 1 4      give   0 2 1 3        where in `take` each live row's answer is

A group that is short of k rows takes its last row again, and that answer is given to nobody; where groups differ so
much that this would be most of the work, each row counts as a group and the stack is gathered by row. Without gradients
the stack is kept from call to call, for as long as no tensor of the adapters is replaced or changed in place. What
writes through `.data` goes unseen, as it does to autograd: switch once more after that.

Of few rows, as when a token is written, native code takes each with its adapter from the stack as it lies.
"""

from dataclasses import dataclass
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core import fused
from featherweight.core.precision import cast, compute_dtype
from featherweight.core.rows import Plan, nest
from featherweight.kernels.native_linear import ROWS, any_order
from featherweight.methods.lora import LowRank
from featherweight.quant.ops import direct, linear, unwatched


@dataclass(eq=False)
class Bank:
    """How the live rows (those with an adapter) of one plan go through the stack; None stands for "as they are".

    `rows`: which of the batch are live. `places` and their adapters, `of`: the live rows, adapter after adapter;
    `apart` where the stack is gathered by them.
    """

    adapters: tuple[Any, ...]  # LowRank
    dropping: tuple[Any, ...]  # those of them with dropout
    groups: int
    take: Tensor | None
    give: Tensor | None
    rows: Tensor | None
    places: Tensor
    of: Tensor
    apart: bool
    kept: "Kept | None" = None


@dataclass(frozen=True, eq=False)
class Kept:
    """A stack, and how to tell that it is as good as new: its tensors are where, and as, they were when it was made.

    `homes[i][names[i]] is things[i]` for the modules and tensors it was made of. `held` shares their memory: while it
    lives, no other tensor comes to lie at their `places`.
    """

    homes: list[dict[str, Any]]
    names: list[str]
    things: list[Any]
    tensors: list[Tensor]
    versions: list[int]
    places: list[int]
    held: list[Tensor]
    dtype: torch.dtype
    stacks: tuple[Tensor, Tensor]

    def fresh(self, dtype: torch.dtype) -> bool:
        """Thousands of tensors are asked for each token: `map` over C functions, no Python in between."""
        return (
            dtype is self.dtype
            and all(map(is_, map(dict.get, self.homes, self.names), self.things))
            and list(map(version, self.tensors)) == self.versions
            and list(map(Tensor.data_ptr, self.tensors)) == self.places
        )


version = attrgetter("_version")


def serve(host: Any, plan: Plan, *args: Any, **kwargs: Any) -> Tensor:
    """Rows of LoRA adapters on nn.Linear; what the stack cannot do (dropout, a compiled graph) is nested."""
    if kwargs or len(args) != 1 or torch.compiler.is_compiling():
        return nest(host, plan, args, kwargs)
    if plan.memo is None:
        with torch.inference_mode(False):  # what is kept must serve a later training step too
            plan.memo = bank_of(plan, len(host.switch.rows))
    bank, x = plan.memo, args[0]
    if any(a.training for a in bank.dropping):
        return nest(host, plan, args, kwargs)
    dtype = compute_dtype(x)
    rows = x.to(dtype).reshape(len(host.switch.rows), -1, x.shape[-1])  # (rows, tokens of a row, in)
    y = answer(bank, rows, host.weight.to(dtype), cast(host.bias, dtype), *stacked(bank, x, dtype))
    return y.view(*x.shape[:-1], y.shape[-1])


fused.banks[LowRank, nn.Linear] = serve


def answer(bank: Bank, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
    """x (rows, t, in) through the layer and the adapters."""
    if not unwatched(x) or x.numel() > ROWS * x.shape[2]:
        return add(bank, x, F.linear(x, W, bias), A, B)
    x = x.contiguous()
    with any_order():
        y = linear(x, W, bias)
    summed: Tensor = direct("bank", lambda *_: add(bank, x, y, A, B), (x, y, A, B, bank.places, bank.of))
    return summed


def add(bank: Bank, x: Tensor, y: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """y (rows, t, out) and what the adapters give for x (rows, t, in), in place."""
    taken = x if bank.take is None else x.index_select(0, bank.take)
    if bank.apart:
        A, B = A.index_select(0, bank.of), B.index_select(0, bank.of)
    low = torch.bmm(A, taken.reshape(bank.groups, -1, x.shape[2]).transpose(1, 2))  # (G, r, k t): few rows are a gemv
    h = low.transpose(1, 2)
    if bank.take is None:
        y.view(bank.groups, -1, y.shape[2]).baddbmm_(h, B)
        return y
    delta = torch.bmm(h, B).view(-1, *y.shape[1:])  # (G k, t, out)
    given = delta if bank.give is None else delta.index_select(0, bank.give)
    return y.add_(given) if bank.rows is None else y.index_add_(0, bank.rows, given)


def stacked(bank: Bank, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A (G, r, in) and s Bᵀ (G, r, out), kept from call to call where nothing is differentiated."""
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for a in bank.adapters for p in factors(a))):
        return stack(bank.adapters, dtype)
    if bank.kept is None or not bank.kept.fresh(dtype):
        bank.kept = keep(bank.adapters, dtype)
    return stack(bank.adapters, dtype) if bank.kept is None else bank.kept.stacks


def keep(adapters: tuple[Any, ...], dtype: torch.dtype) -> Kept | None:
    """The stack to keep; None where changes are not counted (tensors made under inference mode)."""
    modules = [m for a in adapters for m in (a.lora_A, a.lora_B)]
    tensors = [m.weight for m in modules]
    if any(t.is_inference() for t in tensors):
        return None
    with torch.inference_mode(False), torch.no_grad():
        stacks = stack(adapters, dtype)
    return Kept(
        homes=[home for a in adapters for home in (a._modules, a._modules)] + [m._parameters for m in modules],
        names=["lora_A", "lora_B"] * len(adapters) + ["weight"] * len(modules),
        things=[*modules, *tensors],
        tensors=tensors,
        versions=list(map(version, tensors)),
        places=list(map(Tensor.data_ptr, tensors)),
        held=[t.detach() for t in tensors],
        dtype=dtype,
        stacks=stacks,
    )


def factors(adapter: Any) -> tuple[Tensor, Tensor]:
    return adapter.lora_A.weight, adapter.lora_B.weight


def stack(adapters: tuple[Any, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The adapters' matrices below one another, lower ranks padded with zeros."""
    pairs = [factors(a) for a in adapters]
    rank = max(A.shape[0] for A, _ in pairs)
    scales = [a.scale for a in adapters]
    return (
        torch.stack([padded(A.to(dtype), rank) for A, _ in pairs]),
        torch.stack([padded(B.to(dtype).t() * s, rank) for (_, B), s in zip(pairs, scales, strict=True)]),
    )


def padded(M: Tensor, rank: int) -> Tensor:
    """(r, n) -> (rank, n)."""
    return M if M.shape[0] == rank else F.pad(M, (0, 0, 0, rank - M.shape[0]))


def bank_of(plan: Plan, rows: int) -> Bank:
    """The layout of a plan, counted in entries of the switch: one entry may stand for several rows of the batch."""
    each = plan.batch // rows
    live = [([i // each for i in ix.tolist()[::each]], held[0]) for ix, held in plan.groups if held]
    members, adapters = [ix for ix, _ in live], tuple(a for _, a in live)
    total, most = sum(map(len, members)), max(map(len, members))
    apart = len(members) * most > 2 * total
    if apart:
        members, most = [[i] for ix in members for i in ix], 1
    take = [ix[min(j, len(ix) - 1)] for ix in members for j in range(most)]
    place = {ix[j]: g * most + j for g, ix in enumerate(members) for j in range(len(ix))}
    order = sorted(place)
    give = [place[i] for i in order]
    return Bank(
        adapters,
        tuple(a for a in adapters if a.dropout.p),
        groups=len(members),
        take=None if take == list(range(rows)) else tensor(take, plan),
        give=None if give == list(range(len(take))) else tensor(give, plan),
        rows=None if len(order) == rows else tensor(order, plan),
        places=tensor([i for ix, _ in live for i in ix], plan),
        of=tensor([g for g, (ix, _) in enumerate(live) for _ in ix], plan),
        apart=apart,
    )


def tensor(numbers: list[int], plan: Plan) -> Tensor:
    return torch.tensor(numbers, device=plan.device)
