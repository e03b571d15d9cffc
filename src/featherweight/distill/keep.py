"""Which of a teacher's N blocks a student of M keeps: block numbers from 0, in order.

    spread   round(i (N-1) / (M-1))     both ends; 12 -> 6 is 0, 2, 4, 7, 9, 11, DistilBERT's list
    strided  ⌊i N / M⌋                  the first of each group; the last block goes
    groups   ⌊(i+1) N / M⌋ - 1          the last of each group: TinyBERT's layer map
    first    i                          baselines, worse in TinyBERT's ablation
    last     N - M + i

Or those that matter most, given what leaving out each of them costs (`importance.py`).
Sources: Sanh et al. 2019 (DistilBERT, and its code); Jiao et al. 2019 (TinyBERT), table 5.
"""

from collections.abc import Callable, Mapping, Sequence

from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all

RULES: dict[str, Callable[[int, int, int], int]] = {
    "spread": lambda i, n, m: round(i * (n - 1) / (m - 1)) if m > 1 else 0,
    "strided": lambda i, n, m: i * n // m,
    "groups": lambda i, n, m: (i + 1) * n // m - 1,
    "first": lambda i, n, m: i,
    "last": lambda i, n, m: n - m + i,
}


def kept(layers: int | Sequence[int] | None, rule: str | Mapping[str, Sequence[int]], blocks: int,
         where: str = "layers", stack: str = "") -> tuple[int, ...]:  # fmt: skip
    """The blocks kept of a stack of `blocks`: a number of them by a rule, a list as it is, or half for None. In place
    of a rule the blocks of each stack may be given, the first to be kept first.

    Raises InputError over everything that is wrong with them.
    """
    if isinstance(rule, str) and rule not in RULES:
        known = [*RULES, "importance"]
        raise InputError(Problem("unknown rule", "keep", got=repr(rule), fix=did_you_mean(rule, known)))
    if layers is None:
        layers = max(1, blocks // 2)
    if isinstance(layers, int):
        if not 1 <= layers <= blocks:
            raise InputError(Problem("no number of layers", where, f"1 to {blocks}", str(layers)))
        if isinstance(rule, str):
            return tuple(RULES[rule](i, blocks, layers) for i in range(layers))
        return tuple(sorted(rule[stack][:layers]))
    chosen = tuple(layers)
    raise_all(problems(chosen, blocks, where))
    return chosen


def problems(chosen: tuple[int, ...], blocks: int, where: str) -> list[Problem]:
    """An empty list, numbers that name no block, or that do not rise."""
    if not chosen:
        return [Problem("no layer is kept", where, "block numbers", "an empty list")]
    outside = [i for i in chosen if not 0 <= i < blocks]
    found = [Problem("no such block", where, f"0 to {blocks - 1}", str(i)) for i in outside]
    if list(chosen) != sorted(set(chosen)):
        found.append(Problem("the blocks are not in order", where, "each number once, rising", str(list(chosen))))
    return found
