"""What quantizing a teacher does to what it teaches: the noise in its answers, said once.

    KL(p_plain ‖ p_codes), a mean over rows or trained tokens, and the share of equal first answers

A student of the quantized teacher learns p_codes: what is measured here is the error that it cannot make good.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from featherweight.core.errors import InputError, Problem
from featherweight.data.load import Data, load
from featherweight.data.rows import examples
from featherweight.distill.report.compared import Interval, answers, share
from featherweight.evaluate.setting import task_of, tokenizer_of
from featherweight.quant.quantize import quantize
from featherweight.quant.scheme import Scheme
from featherweight.tasks import Task
from featherweight.tasks.check import check_length

ROWS = 256  # looked at


@dataclass(frozen=True)
class Rounding:
    """`kl` in nats a unit, `agreement` the share of units with one first answer, over so many `units`."""

    scheme: Scheme
    kl: float
    agreement: Interval
    units: int

    def __str__(self) -> str:
        same = f"{100 * self.agreement.value:.2f} % of answers the same"
        return f"teacher as {self.scheme!r}: KL(plain ‖ codes) {self.kl:.4g} nats a unit, {same} ({self.units:,} units)"


def quantized_teacher(teacher: Any, scheme: Scheme, data: Any, task: Task | None = None, *, tokenizer: Any = None,
                      columns: Any = None, batch: int = 32, **options: Any) -> Rounding:  # fmt: skip
    """Quantize a teacher in place (`fw.quantize(teacher, scheme, **options)`), and say what that does to its answers to
    the first rows of the training split, which are labelled. While it is measured a plain copy is in memory too.

    Raises InputError for a task without a distribution, and what `fw.quantize` raises.
    """
    loaded = data if isinstance(data, Data) else load(data, columns)
    chosen = task_of(teacher, task, loaded.shape)
    if not chosen.exclusive:
        raise InputError(Problem("this task has no distribution", "task", "Classification or words", repr(chosen)))
    words = tokenizer_of(teacher, tokenizer)
    rows = chosen.encode_all(examples(loaded.train, loaded.shape)[:ROWS], words, check_length(teacher, None))
    plain = deepcopy(teacher)
    quantize(teacher, scheme, **options)
    found = answers({"plain": plain, "codes": teacher}, chosen, rows, words, batch)
    first, second = found["plain"], found["codes"]
    same = share(int((first.top == second.top).sum()), len(first.top))
    return Rounding(scheme, float(second.kl.double().mean()), same, len(first.top))
