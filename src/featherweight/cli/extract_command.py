"""`fw extract`: a full fine-tune as a LoRA on the model it was made from."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import fresh, named, pairs, place
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem, raise_all

if TYPE_CHECKING:
    from rich.console import Console


def command(
    tuned: Annotated[str | None, Parameter(help="Folder of the fine-tuned model.")] = None,
    base: Annotated[str | None, Parameter(help="Folder of the model it was made from.")] = None,
    /,
    *,
    rank: Annotated[int, Parameter(help="Rank of the LoRA.")] = 16,
    output: Annotated[Path | None, Parameter(help="Folder to write the adapter to; must not be there yet.")] = None,
    task: Annotated[str | None, Parameter(help="The task, where the tuned model does not say.")] = None,
    data: Annotated[str | None, Parameter(help="Labelled rows to compare the three models on.")] = None,
    columns: Annotated[str | None, Parameter(help="Which column is what: text=review,label=stars.")] = None,
    batch: Annotated[int, Parameter(help="Rows at a time.")] = 32,
    length: Annotated[int | None, Parameter(help="Most tokens per row.")] = None,
    device: Annotated[str, Parameter(help="auto, cuda, mps or cpu.")] = "auto",
) -> Shown:
    """Turn a full fine-tune into a LoRA: its spectrum, what was kept, and what it costs."""
    needed = {"TUNED": tuned, "BASE": base, "--output": output}
    raise_all(
        Problem("is needed", flag, fix="fw extract TUNED BASE --output DIR") for flag, v in needed.items() if v is None
    )
    if tuned is None or base is None or output is None:
        raise InputError("TUNED, BASE and --output are needed")
    fresh(output, "the output")
    from featherweight.checkpoint import save
    from featherweight.combine import extract

    one, other = models(tuned, base, task, place(device))
    found = extract(one, other, rank)
    save(found.model, output)
    if other.tokenizer is not None:
        other.tokenizer.save_pretrained(output)
    scores = {} if data is None else compared(one, other, data, columns, batch, length)
    report = {"output": str(output), **found.to_dict(), "scores": scores}
    report.pop("measured")
    return Shown(report, (partial(table, found), *summary(found, scores), f"adapter: {output}"))


def models(tuned: str, base: str, task: str | None, device: str) -> tuple[Any, Any]:
    """Both models, loaded for the task that is named or that the tuned one was made for."""
    from featherweight.evaluate.setting import task_of_model, with_labels
    from featherweight.interop import load_base

    one = load_base(tuned)
    wanted = named(task) or task_of_model(one)
    if wanted is not None:
        wanted = with_labels(wanted, one)
        one = load_base(tuned, wanted)
    return one.to(device), load_base(base, wanted).to(device)


def compared(tuned: Any, base: Any, data: str, columns: str | None, batch: int, length: int | None) -> dict[str, Any]:
    """Loss and metrics of the tuned model, of the base with the LoRA, and of the base without it."""
    from featherweight.core.switch import switch
    from featherweight.evaluate import evaluate

    def scored(model: Any) -> dict[str, Any]:
        return evaluate(model, data, base.task, batch=batch, length=length, columns=pairs(columns)).to_dict()

    found = {"tuned": scored(tuned), "extracted": scored(base)}
    with switch(base, None):
        return {**found, "base": scored(base)}


def table(found: Any, out: "Console") -> None:
    """One line per module."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("module", "shape", "change", "rank", "kept", "90 % at", "spectrum"):
        shown.add_column(title, justify="left" if title in ("module", "spectrum") else "right", overflow="fold")
    for s in found.spectra:
        shown.add_row(s.path, "×".join(map(str, s.shape)), f"{s.relative:.2%}", str(s.rank), f"{s.kept:.1%}",
                      str(s.rank_for(0.9)), s.bars())  # fmt: skip
    out.print(shown)


def summary(found: Any, scores: dict[str, Any]) -> list[str]:
    lines = [
        f"kept {found.kept:.1%} of the change in {found.parameters:,} parameters"
        + (", and the head" if found.head else "")
    ]
    if found.left:
        worst = max(found.left, key=lambda t: t.relative)
        lines.append(
            f"left out: {len(found.left)} tensors (biases, norms), {worst.name} changed most: {worst.relative:.2%}"
        )
    for name, values in scores.items():
        told = {k: v for k, v in values.items() if isinstance(v, float)}
        lines.append(f"{name:<10}" + "  ".join(f"{k} {v:.4f}" for k, v in told.items()))
    return lines
