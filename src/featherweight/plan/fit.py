"""The inverse of a plan: what fits into so many bytes, best first.

The rule, as the papers' and our own comparisons order them (docs/plan.md): a method that reaches more of the model
before one that reaches less; then the base in floating point before int8 before NF4; then without recomputing before
with it, which costs a third more time. Of each the largest batch that fits: memory is a straight line in the batch, and
two traces give it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from featherweight.core.method import Method
from featherweight.plan.plan import Plan, plan
from featherweight.quant.scheme import Scheme

MOST = 256  # rows: a larger batch is no better


@dataclass(frozen=True)
class Option:
    """Something that fits: the plan at the largest batch, and the same rows a step by accumulation."""

    plan: Plan
    checkpointing: bool
    accumulate: int


def candidates() -> list[Method]:
    """Methods in the order of the rule."""
    from featherweight.methods import IA3, BitFit, Full, Head, LoRA

    return [Full(), LoRA(targets="linear"), LoRA(), IA3(), BitFit(), Head()]


def formats() -> list[Scheme | None]:
    from featherweight.quant import NF4, Absmax

    return [None, Absmax(per="row"), NF4(double=True)]


def fit(source: Any, limit: int, methods: Sequence[Method] = (), schemes: Sequence[Scheme | None] | None = None,
        batch: int = 8, **values: Any) -> list[Option]:  # fmt: skip
    """What fits into `limit` bytes, best first; rows a step stay `batch`, in as many micro-batches as needed.

    `methods` and `schemes` narrow the search. An empty list means that not even one row fits in any way that was tried.
    """
    found = []
    for method in methods or candidates():
        for scheme in formats() if schemes is None else schemes:
            for checkpointing in (False, True):
                option = largest(source, limit, method, scheme, batch, values | {"checkpointing": checkpointing})
                if option is not None:
                    found.append(option)
    return found


def largest(source: Any, limit: int, method: Method, scheme: Scheme | None, batch: int,
            values: dict[str, Any]) -> Option | None:  # fmt: skip
    """The option with the most rows at a time, None where one row is too much or the two do not go together."""
    from featherweight.core.errors import InputError

    try:
        one = plan(source, method, scheme, batch=1, **values)
    except InputError:
        if scheme is None:
            raise
        return None  # a method that trains the base's own tensors has no use for codes
    if one.peak_bytes > limit:
        return None
    two = plan(source, method, scheme, batch=2, **values)
    row = max(1, two.train_bytes - one.train_bytes)
    rows = min(batch, 1 + (limit - one.train_bytes) // row)
    chosen = one if rows == 1 else plan(source, method, scheme, batch=rows, **values)
    while chosen.peak_bytes > limit and rows > 1:  # answering a batch may need more than training on it
        rows -= 1
        chosen = plan(source, method, scheme, batch=rows, **values)
    return Option(chosen, bool(values["checkpointing"]), -(-batch // rows))


def ways_out(plan_: Plan, checkpointing: bool) -> Iterator[str]:
    """What to change when a plan does not fit, the cheapest first."""
    if plan_.batch > 1:
        yield f"--accumulate {plan_.batch}: the same gradient from one row at a time"
    if not checkpointing:
        yield "--checkpointing: activations are made again in the backward pass, a third more time"
    if plan_.precision == "fp32":
        yield "--precision bf16: half of weights and activations"
    if plan_.scheme is None:
        yield "--quantize nf4 --quantize.double true: the base in 4.1 bits a parameter"
    yield f"--length {max(1, plan_.length // 2)}: shorter rows; longer ones are cut"
