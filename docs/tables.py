"""Write the tables of README and docs anew: from the method classes and from benchmarks/results/*.json.

    python docs/tables.py        (make docs)

A table stands between `<!-- table: name -->` and `<!-- end -->`; the function of that name renders it. A test compares
what stands there with what would be rendered, so that no figure is ever typed by hand.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered() -> Iterator[tuple[Path, str]]:
    """(page, its text with every table made anew)."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        if PLACE.search(text):
            yield page, PLACE.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def methods() -> str:
    import featherweight.methods  # noqa: F401  # they make themselves known
    from featherweight.core.method import Method

    rows = []
    for _, method in sorted(Method.known.items()):
        kind: Any = method
        targets = getattr(kind(), "targets", "")
        where = ", ".join(targets) if isinstance(targets, tuple) else targets
        flags = ["yes" if flag else "no" for flag in (kind.mergeable, kind.per_row)]
        rows.append(
            [f"`{method.__name__}`", kind.place, f"`{where}`" if where else "", *flags, f"{kind.lr:g}", kind.paper]
        )
    return markdown(["method", "where it sits", "default targets", "merges", "per row", "lr", "paper"], rows)


TABLES: dict[str, Callable[[], str]] = {"methods": methods}


def main() -> None:
    for page, text in list(rendered()):
        if page.read_text() != text:
            page.write_text(text)
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
