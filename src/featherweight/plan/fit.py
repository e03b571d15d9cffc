"""The inverse of a plan: what fits into so many bytes, best first.

The rule, as the papers' and our own comparisons order them (docs/plan.md): a method that reaches more of the model
before one that reaches less; then the base in floating point before int8 before NF4; then without recomputing before
with it, which costs a third more time. Of each the largest batch that fits: memory is a straight line in the batch, and
two traces give it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featherweight.core.errors import InputError
from featherweight.core.method import Method
from featherweight.plan.facts import Subject
from featherweight.plan.plan import Plan, planned, subject, train_bytes
from featherweight.quant.scheme import Scheme
from featherweight.tasks import Task
from featherweight.train.recipes import RunRecipe, recipe_of, under
from featherweight.train.settings import Settings, settings

ROWS = 8  # a step, where nothing is said


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


def fit(source: Any, limit: int, methods: Sequence[Method] = (), schemes: Sequence[Any] | None = None, *,
        task: Task | None = None, data: Any = None, columns: Any = None, template: str | None = None,
        recipe: RunRecipe | str | None = None, head: bool | str = "auto", over: Mapping[str, Any] | None = None,
        **values: Any) -> list[Option]:  # fmt: skip
    """What fits into `limit` bytes, best first; rows a step stay as asked (8), in as many micro-batches as needed.

    `methods` and `schemes` narrow the search; a method or format that was not asked for and cannot be had on this model
    is passed over. Recomputing is tried where not all rows fit at once without. An empty list means that not even one
    row fits in any way that was tried.
    """
    followed, found = recipe_of(recipe), []
    values = {"batch": ROWS} | under(followed, values)
    about = subject(source, settings(values), task=task, recipe=followed, data=data, columns=columns, template=template,
                    head=head, over=over)  # fmt: skip
    for method in methods or candidates():
        for scheme in formats() if schemes is None else schemes:
            asked = bool(methods) and (scheme is None or schemes is not None)
            for checkpointing in (False, True):
                try:
                    option = largest(about, limit, method, scheme, values | {"checkpointing": checkpointing})
                except InputError:
                    if asked:
                        raise
                    break
                if option is not None:
                    found.append(option)
                    if option.accumulate == 1:
                        break
    return found


def largest(about: Subject, limit: int, method: Method, scheme: Any, values: Mapping[str, Any]) -> Option | None:
    """The option with the most rows at a time, None where one row is too much."""

    def with_rows(n: int) -> Settings:
        return settings({**values, "batch": n})

    batch = int(values["batch"])
    one, two = (train_bytes(about, method, scheme, with_rows(n)) for n in (1, 2))
    rows = min(batch, 1 + (limit - one) // max(1, two - one))
    while rows > 0:
        made = planned(about, method, scheme, with_rows(rows))
        if max(made.train_bytes, made.peaks["load"], made.peaks["save"]) <= limit:
            return Option(made, bool(values["checkpointing"]), -(-batch // rows))
        if max(made.peaks["load"], made.peaks["save"]) > limit:
            return None
        rows -= 1  # the line is straight but for a step where the head's logits are cut
    return None


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
