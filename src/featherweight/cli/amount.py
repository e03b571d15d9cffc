"""Amounts of memory as people write them: 6GB, 512MB, 1.5 GiB."""

import re

from featherweight.core.errors import Problem

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def bytes_of(text: str | None, where: str, problems: list[Problem]) -> int | None:
    """6GB, 6G or 6 gb -> 6,000,000,000. What cannot be read becomes a problem."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?I?B?)\s*", text, re.IGNORECASE)
    unit = match[2].upper() if match else ""
    unit = unit if unit.endswith("B") else f"{unit}B"
    if match is None or unit not in UNITS:
        problems.append(Problem("not an amount of memory", where, "such as 6GB or 512MB", repr(text)))
        return None
    return round(float(match[1]) * UNITS[unit])
