"""The flags of a noun as one word of JSON: `--scheme nf4 --scheme.block 32`, `--task choices --task.end false`.

Commands whose other flags are plain take such a family as one flag: `gathered` makes it before the words are parsed,
`values_of` undoes it. What the fields mean is read by `nouns.noun`, as for the commands that read all flags themselves.
"""

import json
from collections.abc import Sequence
from typing import Any

from featherweight.cli.flags import normal, one
from featherweight.cli.schema import Key
from featherweight.cli.value import Value
from featherweight.core.errors import Problem

FAMILIES = ("scheme", "quantize", "task")


def gathered(tokens: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """`--scheme nf4 --scheme.block 32` as one flag: `--scheme={"scheme.type": ["nf4", "--scheme"], …}`."""
    problems: list[Problem] = []
    kept: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    rest = list(tokens)
    while rest:
        word = rest.pop(0)
        key = normal(word[2:].partition("=")[0])
        family = key.partition(".")[0]
        if not word.startswith("--") or family not in FAMILIES:
            kept.append(word)
            continue
        value = one(word, rest, {name: Key(name, str) for name in FAMILIES})
        if isinstance(value, Problem):
            problems.append(value)
            continue
        name = f"{key}.type" if key == family else key
        found.setdefault(family, {})[name] = [value.raw, value.where]
    return kept + [f"--{family}={json.dumps(values)}" for family, values in found.items()], problems


def values_of(family: str, text: str | None) -> dict[str, Value]:
    """The flags of a family that `gathered` made one of; a plain word is the noun's name."""
    if text is None:
        return {}
    key = f"{family}.type"
    values = json.loads(text) if text.startswith("{") else {key: (text, f"--{family}")}
    return {k: Value(k, raw, where, flag=True) for k, (raw, where) in values.items()}
