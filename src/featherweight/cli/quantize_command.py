"""`fw quantize`: a model folder whose weights are codes, and a report of what that did to them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import fresh, pairs
from featherweight.cli.quantize_screen import listing, table
from featherweight.cli.recipes import read
from featherweight.cli.screen import Shown, told
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.files.staged import staged

if TYPE_CHECKING:
    from featherweight.quant.recipe import Recipe

REPORT = "quantization_report.json"
PICTURES = (".png", ".svg")
SCHEME = "The number format (`fw quantize` alone lists them); its fields are --scheme.block 32, --scheme.double, ..."

LAYOUT = "How the folder is laid out: featherweight, or bitsandbytes, gptq_v2, gptq, which other libraries load."


def command(
    model: Annotated[str | None, Parameter(help="Folder of the model, or its name on the hub.")] = None,
    /,
    *,
    scheme: Annotated[str | None, Parameter(help=SCHEME)] = None,
    output: Annotated[Path | None, Parameter(help="Folder to write the model to; must not be there yet.")] = None,
    format: Annotated[str, Parameter(help=LAYOUT)] = "featherweight",  # noqa: A002
    targets: Annotated[str, Parameter(help="What becomes codes: roles, names, regexes, by commas.")] = "linear",
    skip: Annotated[str | None, Parameter(help="What of it stays as it is: down, layers.0, ..., by commas.")] = None,
    dtype: Annotated[str, Parameter(help="Of all other tensors: fp32, bf16, or what the file has.")] = "auto",
    calibration: Annotated[
        str | None, Parameter(help="Texts to measure the layers' outputs on; some formats need them.")
    ] = None,
    columns: Annotated[str | None, Parameter(help="Which column of these is what: text=review.")] = None,
    rows: Annotated[int, Parameter(help="Most rows of them to use.")] = 128,
    length: Annotated[int, Parameter(help="Most tokens per row of them.")] = 512,
    batch: Annotated[int, Parameter(help="Rows of them at a time.")] = 8,
    picture: Annotated[Path | None, Parameter(help="Draw a heat map of the layers: .png or .svg.")] = None,
) -> Shown:  # fmt: skip
    """Quantize a model from folder to folder, one tensor at a time."""
    if model is None and scheme is None:
        return listing()
    problems: list[Problem] = []
    recipe: Any = read(scheme, "scheme", problems)
    missing = {"MODEL": model, "--scheme": scheme, "--output": output}
    counts = {"--rows": rows, "--length": length, "--batch": batch}
    unknown = of_dtype(dtype)
    raise_all([*problems, *unfit(missing, recipe, calibration, picture, counts), *unknown, *unwritable(format, recipe)])
    assert model is not None
    assert output is not None
    fresh(output, "the output")
    recipe = placed(recipe, targets, skip)
    if calibration:
        loaded = whole(model, recipe, dtype, calibration, columns, rows, length, batch)
    else:
        loaded = streamed(model, recipe, dtype)
    return finished(loaded, output, picture, format)


def finished(model: Any, output: Path, picture: Path | None, layout: str) -> Shown:
    """Write everything, and show what was written."""
    report = model.quantization_report
    written(model, report, output, layout)
    if picture is not None:
        from featherweight.quant.picture import heatmap

        heatmap(report, picture)
    lines = [*report.lines(), f"every layer: {output / REPORT}"]
    lines += [*([f"picture: {picture}"] if picture else []), f"model: {output}   ({layout})"]
    return Shown({"output": str(output), "format": layout, **report.to_dict()}, (partial(table, report), *lines))


def unfit(
    missing: dict[str, Any], recipe: Any, calibration: str | None, picture: Path | None, counts: dict[str, int]
) -> Iterator[Problem]:
    """What is wrong with the flags."""
    for flag, value in missing.items():
        if value is None:
            yield Problem("is needed", flag, fix="fw quantize MODEL --scheme nf4 --output DIR")
    if recipe == "none":
        yield Problem("which number format?", "--scheme", got="none", fix="fw quantize lists them")
    elif recipe is not None and recipe.scheme.calibrated and calibration is None:
        fix = "--calibration FILE with a few hundred rows of text"
        yield Problem("the number format is calibrated on data", "--calibration", got=repr(recipe.scheme), fix=fix)
    if picture is not None and picture.suffix not in PICTURES:
        yield Problem("unknown kind of picture", "--picture", " or ".join(PICTURES), repr(str(picture)))
    yield from (Problem("wrong value", flag, "at least 1", str(n)) for flag, n in counts.items() if n < 1)


def of_dtype(word: str) -> list[Problem]:
    from featherweight.interop.rounding import problems

    return list(problems(word, "--dtype"))


def unwritable(layout: str, recipe: Any) -> list[Problem]:
    """Why a folder cannot be laid out so, whatever the model."""
    from featherweight.interop.quantized.export import obstacles

    return list(obstacles(layout, getattr(recipe, "scheme", None), "--format"))


def placed(recipe: "Recipe", targets: str, skip: str | None) -> "Recipe":
    """The recipe with its places from the flags."""
    from dataclasses import replace

    return replace(recipe, targets=entries(targets), skip=entries(skip) if skip else ())


def entries(text: str) -> str | tuple[str, ...]:
    """`attention,up` as two entries; a regex with a comma of its own is given alone, in brackets or braces."""
    if any(c in text for c in "[({"):
        return text
    parts = tuple(part for part in text.split(",") if part)
    return parts if len(parts) > 1 else text


def streamed(model: str, recipe: "Recipe", dtype: str) -> Any:
    """The model, its weights encoded as they were read. Raises InputError for one that holds codes already."""
    from featherweight.interop import load_base

    loaded = load_base(model, dtype=dtype, quantize=recipe)
    if getattr(loaded, "quantization_report", None) is None:
        fix = "it is what you asked for: copy it"
        raise InputError(Problem("the model is quantized already", model, got=repr(recipe.scheme), fix=fix))
    return loaded


def whole(
    model: str, recipe: "Recipe", dtype: str, calibration: str, columns: str | None, rows: int, length: int, batch: int
) -> Any:
    """The model in float, quantized with what runs through it."""
    from featherweight.cli.calibration import batches
    from featherweight.evaluate.progress import teller
    from featherweight.interop import load_base
    from featherweight.quant.quantize import quantize

    loaded = load_base(model, dtype=dtype)
    seen = batches(loaded, calibration, pairs(columns), rows, length, batch)
    told(f"quantize: measuring the layers on up to {rows} rows of {calibration} …")
    quantize(loaded, recipe.scheme, targets=recipe.targets, skip=recipe.skip, batches=seen,
             told=teller(told, "quantize", what="layers"))  # fmt: skip
    return loaded


def written(model: Any, report: Any, output: Path, layout: str) -> None:
    """Model, tokenizer and report, whole or not at all."""
    import json

    from featherweight.cli.screen import jsonable
    from featherweight.interop.quantized.export import save_quantized

    text = json.dumps(jsonable(report.to_dict()), indent=1, allow_nan=False)
    try:
        with staged(output) as beside:  # `fresh` has looked: there is nothing, or an empty folder
            beside.mkdir()
            save_quantized(model, beside, layout)
            (beside / REPORT).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(Problem("cannot be written", str(output), got=error.strerror or str(error))) from error
