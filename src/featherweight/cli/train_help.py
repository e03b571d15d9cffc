"""The help of `fw train`, drawn from the schema: what the file and the flags may say, from one source."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args, get_origin

from featherweight.cli.schema import OWN, Key, run_keys
from featherweight.cli.screen import Shown
from featherweight.cli.value import described

USAGE = """\
Usage: fw train [RUN.TOML] [--KEY VALUE ...]

Fine-tune a model on your data. The file comes first, flags go over it; both
spell the same keys, - and _ alike.

  fw train --model MODEL --data rows.csv --output out/first
  fw train run.toml --method.rank 16 --lr 1e-3 --output out/second
  fw train --from out/first --data more.csv --output out/third
"""

METHODS = (
    "Methods have options: --method lora --method.rank 8 --method.targets attention\n(`fw methods lora` lists them)."
)


def train_help() -> Shown:
    """Every key with its kind, default and purpose."""
    return panels(USAGE, run_keys(), {key.name for key in OWN}, "The run", METHODS)


def panels(usage: str, keys: Mapping[str, Key], own: Collection[str], title: str, last: str) -> Shown:
    """The keys of a command in two boxes: its own and the settings; the words around them."""
    from rich import box
    from rich.panel import Panel
    from rich.table import Table

    parts = {title: [k for k in keys.values() if k.name in own],
             "Settings": [k for k in keys.values() if k.name not in own]}  # fmt: skip
    pieces: list[Any] = [usage]
    for name, members in parts.items():
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), expand=True)
        table.add_column(no_wrap=True, style="bold cyan")
        table.add_column(ratio=1)
        for key in members:
            table.add_row(f"--{key.name.replace('_', '-')}", about(key))
        pieces.append(Panel(table, title=name, title_align="left", box=box.ROUNDED))
    data = {
        "keys": {k.name: {"kind": described(k.kind), "default": k.default, "about": k.about} for k in keys.values()}
    }
    return Shown(data, (*pieces, last))


def about(key: Key) -> str:
    """The purpose, the choices where they are few, and the default where it is a value."""
    choices = [a for a in get_args(key.kind) if isinstance(a, str)] if get_origin(key.kind) is Literal else []
    extra = f" {' | '.join(choices)}." if choices else ""
    default = "" if key.default is None or key.kind is bool else f" [{key.default}]"
    on = " [on; --no-" + key.name.replace("_", "-") + " turns it off]" if key.default is True else ""
    return f"{key.about}{extra}{default}{on}"
