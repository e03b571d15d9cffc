"""The table of a few-shot suite, and the help of its command."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featherweight.cli.schema import Key
from featherweight.cli.screen import Shown

if TYPE_CHECKING:
    from featherweight.fewshot import Figures
    from featherweight.train.repeats import Spread

USAGE = """\
Usage: fw fewshot SUITE MODEL DIR [--KEY VALUE ...]

Train MODEL on every task of a suite in DIR by the T-Few recipe, score it, print a table.
Takes the keys of fw train that are not the suite's to decide (--steps, --method, ...), and these:
"""
EXAMPLES = """\

  fw fewshot fewglue MODEL DIR --seeds 0,1,32,42,1024
  fw fewshot raft MODEL DIR --folds 10 --submit test_unlabeled.csv
  fw fewshot tfew MODEL DIR --tasks rte,copa --method lora --steps 100
"""
LEGEND = (
    "most frequent: the training rows' commonest label for all. before: the untrained model, by the same templates.",
    "accuracy, F1 (mean over classes): probabilities averaged over the templates. by template: median of each alone.",
)


def help_screen(more: Sequence[Key]) -> Shown:
    """Suites and flags."""
    from featherweight.fewshot import Suite

    suites = {name: str(getattr(kind, "about", "")) for name, kind in Suite.known.items()}
    keys = (*(f"  --{k.name:<8} {k.about}" for k in more), "  --folds    RAFT: parts of its cross-validation [5].")
    data = {"suites": suites, "keys": {k.name: k.about for k in more}}
    return Shown(data, (USAGE, *keys, "", *(f"  {name:<9} {about}" for name, about in suites.items()), EXAMPLES))


def report(suite: str, found: "Figures") -> Shown:
    """The table, what its columns are, and where everything lies."""
    from featherweight.fewshot import Suite

    others = str(getattr(Suite.known[suite], "published", ""))
    lines = [*LEGEND, *([others] if others else []), f"figures: {found.output / 'results.json'}"]
    lines += [f"submission: {file}" for file in found.submissions.values()]
    table = (figures(found),) if found.tasks else ()
    told = lines if found.tasks else [line for line in lines if line not in (*LEGEND, others)]
    return Shown({"suite": suite, **found.to_dict()}, (*table, *told))


def figures(found: "Figures") -> Any:
    """Tasks down, figures across: medians over seeds, with the quartiles of accuracy where there are several."""
    from rich import box
    from rich.table import Table

    several = any(task.seeds > 1 for task in found.tasks)
    names = list(found.tasks[0].figures)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("task", overflow="fold")
    for name in ("train", "test", *names):
        made.add_column(name, justify="right")
    for i, task in enumerate(found.tasks):
        cells = [cell(name, task.figures[name], several) for name in names]
        made.add_row(task.name, f"{task.train:,}", f"{task.test:,}", *cells, end_section=i + 1 == len(found.tasks))
    made.add_row("mean", "", "", *(f"{found.means[name]:.1%}" for name in names))
    return made


def cell(name: str, found: "Spread", several: bool) -> str:
    between = f" ({100 * found.lower:.1f}–{100 * found.upper:.1f})" if several and name == "accuracy" else ""
    return f"{found.median:.1%}{between}"
