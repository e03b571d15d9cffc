"""Which prompt templates a command writes rows by: those of its flag, else those that the adapter was trained with."""

import tomllib
from pathlib import Path

from featherweight.core.errors import InputError, Problem

TEMPLATE = (
    "Prompt templates that write the rows, averaged: a set, one of it (`fw templates`), a folder; "
    "none (default: what the adapter was trained with)."
)
RUN = "run.toml"


def template_of(given: str | None, adapter: Path | None) -> str | None:
    """The templates' name, None for rows that are read as they stand. Raises InputError for an adapter of several sets
    when none is named."""
    if given is not None:
        return None if given.lower() == "none" else given.removesuffix("/drawn")
    found = None if adapter is None else trained_with(adapter)
    if found is not None and "," in found:
        raise InputError(
            Problem("which templates?", "--template", f"one of {found}", fix="the adapter was trained on all of them")
        )
    return found


def trained_with(adapter: Path) -> str | None:
    """The templates on record in an adapter's folder."""
    file = adapter / RUN
    if not file.is_file():
        return None
    found = tomllib.loads(file.read_text(encoding="utf-8")).get("template")
    return None if found is None else str(found).removesuffix("/drawn")
