"""`fw merge`: an adapter folded into its base, as a plain model folder that needs no adapter library."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import fresh
from featherweight.cli.recipes import read
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem, raise_all


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
) -> Shown:
    """Fold an adapter into its model: a plain model folder with its tokenizer."""
    problems: list[Problem] = []
    recipe = read(quantize, "quantize", problems)
    needed = {"--adapter": adapter, "--output": output}
    raise_all([*problems, *(Problem("is needed", f, fix=f"{f} DIR") for f, value in needed.items() if value is None)])
    if adapter is None or output is None:
        raise InputError("--adapter and --output are needed")
    fresh(output, "the output")
    from featherweight.core.count import trainable
    from featherweight.core.merge import merge
    from featherweight.interop import load_model
    from featherweight.quant.quantized import dequantize
    from featherweight.quant.recipe import recipes

    loaded = load_model(adapter, base=model, quantize=recipe)
    tokenizer, task, held = loaded.tokenizer, loaded.task, recipes(loaded)
    plain: Any = merge(loaded, requantize=requantize)
    if not requantize:
        dequantize(plain)  # what had no adapter, too: a plain folder is plain all through
    plain.save_pretrained(output)
    if tokenizer is not None:
        tokenizer.save_pretrained(output)
    if task is not None:
        write(output, task.companions(plain))
    data: dict[str, Any] = {"output": str(output), "parameters": trainable(plain).total}
    if requantize:
        data["requantized"] = plain.merge_report.to_dict()
    return Shown(data, tuple(lines(plain, data, held, requantize)))


def write(output: Path, files: Mapping[str, Any]) -> None:
    """JSON by name into the folder."""
    for name, content in files.items():
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def lines(plain: Any, data: dict[str, Any], held: Sequence[Any], requantize: bool) -> Iterator[str]:
    """What was written, and what its reader should know."""
    from featherweight.interop.pooling import pool_of

    yield f"merged: {data['output']}   ({data['parameters']:,} parameters, no adapter)"
    if requantize:
        yield from str(plain.merge_report).splitlines()
    elif held:
        yield f"its base was {held[0].scheme!r} and is written as decoded; fw quantize makes codes of it again"
    if pool_of(plain) != "own":
        yield f"its head reads the {pool_of(plain)} of the tokens: fw and fw.load_base know, other libraries do not"
