"""`fw merge`: an adapter folded into its base, as a plain model folder that needs no adapter library."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import fresh
from featherweight.cli.recipes import read
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.files.staged import staged

if TYPE_CHECKING:
    from featherweight.core.evidence import MergeReport
    from featherweight.interop.rounding import Rounding

ENOUGH = 0.95  # of the adapter's change: with less kept, the way out is named


def command(
    *,
    adapter: Annotated[Path | None, Parameter(help="Folder of the adapter.")] = None,
    output: Annotated[Path | None, Parameter(help="Folder to write the plain model to; must not be there yet.")] = None,
    model: Annotated[str | None, Parameter(help="The base, where it is no longer where the adapter says.")] = None,
    quantize: Annotated[
        str | None, Parameter(help="The base's number format; none merges into the base as it was before quantizing.")
    ] = None,
    requantize: Annotated[
        bool, Parameter(help="Encode the weights of a quantized base again: what that loses is reported.", negative="")
    ] = False,
    dtype: Annotated[
        str, Parameter(help="What is written: as the base's file has it (auto), fp32, bf16, fp16; rounded once.")
    ] = "auto",
) -> Shown:
    """Fold an adapter into its model: a plain model folder with its tokenizer."""
    problems: list[Problem] = []
    recipe = read(quantize, "quantize", problems)
    needed = {"--adapter": adapter, "--output": output}
    raise_all([*problems, *(Problem("is needed", f, fix=f"{f} DIR") for f, value in needed.items() if value is None)])
    if adapter is None or output is None:
        raise InputError("--adapter and --output are needed")
    fresh(output, "the output")
    from featherweight.interop import load_model
    from featherweight.interop.rounding import Rounding
    from featherweight.interop.rounding import problems as of_dtype
    from featherweight.quant.recipe import recipes

    raise_all(of_dtype(dtype, "--dtype"))
    loaded: Any = load_model(adapter, base=model, quantize=recipe, filed=not requantize)
    held, rounding = recipes(loaded), Rounding.of(loaded, dtype)
    try:
        with staged(output) as beside:  # `fresh` has looked: there is nothing, or an empty folder
            beside.mkdir()
            data = {"output": str(output), **(requantized if requantize else folded)(loaded, beside, rounding)}
            write(beside, loaded)
    except OSError as error:
        raise InputError(Problem("cannot be written", str(output), got=error.strerror or str(error))) from error
    return Shown(data, tuple(lines(loaded, data, held, rounding)))


def folded(model: Any, output: Path, rounding: "Rounding") -> dict[str, Any]:
    """The plain model's weights and configs, one host at a time; the model is left without its adapters."""
    from featherweight.core.attach import detach
    from featherweight.core.count import trainable
    from featherweight.interop.folded import write_merged

    write_merged(model, output, rounding)
    report = rounding.report
    return told(trainable(detach(model)).total, rounding) | ({} if report is None else {"rounded": report.to_dict()})


def requantized(model: Any, output: Path, rounding: "Rounding") -> dict[str, Any]:
    """The same where the base's codes become codes again: these are small enough to be held."""
    from featherweight.core.count import trainable
    from featherweight.core.merge import merge
    from featherweight.interop.folded import cast

    cast(merge(model, requantize=True), rounding)
    model.save_pretrained(output)
    return told(trainable(model).total, rounding) | {"requantized": model.merge_report.to_dict()}


def told(parameters: int, rounding: "Rounding") -> dict[str, Any]:
    from featherweight.interop.rounding import name_of

    return {"parameters": parameters, "dtype": name_of(rounding.usual)}


def write(output: Path, model: Any) -> None:
    """What goes with the weights: the tokenizer, and what the task asks for, JSON by name."""
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(output)
    for name, content in (model.task.companions(model) if model.task is not None else {}).items():
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def lines(plain: Any, data: dict[str, Any], held: Sequence[Any], rounding: "Rounding") -> Iterator[str]:
    """What was written, and what its reader should know."""
    from featherweight.interop.pooling import pool_of

    yield f"merged: {data['output']}   ({data['parameters']:,} parameters, {data['dtype']}, no adapter)"
    if "requantized" in data:
        yield from str(plain.merge_report).splitlines()
    elif held:
        yield f"its base was {held[0].scheme!r} and is written as decoded; fw quantize makes codes of it again"
    if rounding.report is not None:
        yield from of_rounding(rounding.report)
    if pool_of(plain) != "own":
        yield f"its head reads the {pool_of(plain)} of the tokens: fw and fw.load_base know, other libraries do not"


def of_rounding(report: "MergeReport") -> Iterator[str]:
    """How much of the adapter is left, in all and where least is."""
    total, least = report.total, min(report.tensors, key=lambda one: one.kept)
    yield (
        f"rounded to {least.scheme}: {total.kept:.1%} of the adapter's change is kept, with noise of "
        f"{total.noise:.1%} of its size; least, {least.kept:.1%}, in {least.where}"
    )
    if total.kept < ENOUGH:
        yield "--dtype fp32 keeps all of it, in a folder of fp32's size"
