"""`fw merge`: an adapter folded into its base, as a plain model folder that needs no adapter library."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import fresh
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem, raise_all


def command(
    *,
    adapter: Annotated[Path | None, Parameter(help="Folder of the adapter.")] = None,
    output: Annotated[Path | None, Parameter(help="Folder to write the plain model to; must not be there yet.")] = None,
    model: Annotated[str | None, Parameter(help="The base, where it is no longer where the adapter says.")] = None,
    requantize: Annotated[
        bool, Parameter(help="Encode the weights of a quantized base again: what that loses is reported.", negative="")
    ] = False,
) -> Shown:
    """Fold an adapter into its model: a plain model folder with its tokenizer."""
    needed = {"--adapter": adapter, "--output": output}
    raise_all(Problem("is needed", flag, fix=f"{flag} DIR") for flag, value in needed.items() if value is None)
    if adapter is None or output is None:
        raise InputError("--adapter and --output are needed")
    fresh(output, "the output")
    from featherweight.core.count import trainable
    from featherweight.core.merge import merge
    from featherweight.interop import load_model
    from featherweight.interop.pooling import pool_of

    loaded = load_model(adapter, base=model)
    tokenizer = loaded.tokenizer
    plain: Any = merge(loaded, requantize=requantize)
    plain.save_pretrained(output)
    if tokenizer is not None:
        tokenizer.save_pretrained(output)
    data: dict[str, Any] = {"output": str(output), "parameters": trainable(plain).total}
    lines = [f"merged: {output}   ({data['parameters']:,} parameters, no adapter)"]
    if requantize:
        data["requantized"] = plain.merge_report.to_dict()
        lines += str(plain.merge_report).splitlines()
    if pool_of(plain) != "own":
        lines.append(
            f"its head reads the {pool_of(plain)} of the tokens: fw and fw.load_base know, other libraries do not"
        )
    return Shown(data, tuple(lines))
