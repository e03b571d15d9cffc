"""`fw merge`: an adapter folded into its base, as a plain model folder that needs no adapter library."""

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
    needed = {"--adapter": adapter, "--output": output}
    problems: list[Problem] = []
    recipe = read(quantize, "quantize", problems)
    problems += [Problem("is needed", flag, fix=f"{flag} DIR") for flag, value in needed.items() if value is None]
    raise_all(problems)
    if adapter is None or output is None:
        raise InputError("--adapter and --output are needed")
    fresh(output, "the output")
    from featherweight.core.merge import merge
    from featherweight.interop import load_model
    from featherweight.quant.quantized import dequantize
    from featherweight.quant.recipe import recipes

    loaded = load_model(adapter, base=model, quantize=recipe)
    tokenizer, held = loaded.tokenizer, recipes(loaded)
    plain: Any = merge(loaded, requantize=requantize)
    if not requantize:
        dequantize(plain)  # what had no adapter, too: a plain folder is plain all through
    plain.save_pretrained(output)
    if tokenizer is not None:
        tokenizer.save_pretrained(output)
    return shown(plain, output, requantize, f"{held[0].scheme!r}" if held else "")


def shown(plain: Any, output: Path, requantize: bool, scheme: str) -> Shown:
    """What was written; `scheme` is how the base was kept, "" where in floating point."""
    from featherweight.core.count import trainable
    from featherweight.interop.pooling import pool_of

    data: dict[str, Any] = {"output": str(output), "parameters": trainable(plain).total}
    lines = [f"merged: {output}   ({data['parameters']:,} parameters, no adapter)"]
    if requantize:
        data["requantized"] = plain.merge_report.to_dict()
        lines += str(plain.merge_report).splitlines()
    elif scheme:
        lines.append(f"its base was {scheme} and is written as decoded; fw quantize makes codes of it again")
    if pool_of(plain) != "own":
        lines.append(
            f"its head reads the {pool_of(plain)} of the tokens: fw and fw.load_base know, other libraries do not"
        )
    return Shown(data, tuple(lines))
