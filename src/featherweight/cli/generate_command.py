"""`fw generate`: what a model writes after a prompt."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import QUANTIZE, opened
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem


def command(
    *,
    prompt: Annotated[
        list[str] | None, Parameter(help="What to write on from; may be given several times.", negative=())
    ] = None,
    file: Annotated[Path | None, Parameter(help="A text file: one prompt, the whole of it.")] = None,
    adapter: Annotated[Path | None, Parameter(help="Folder of the adapter.")] = None,
    model: Annotated[str | None, Parameter(help="Folder of a model: alone, or as the adapter's base.")] = None,
    tokens: Annotated[int, Parameter(help="Most new tokens.")] = 128,
    temperature: Annotated[float, Parameter(help="0 is greedy; above, sampling.")] = 0.0,
    top_p: Annotated[float, Parameter(help="Sample from the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, Parameter(help="Of the sampling.")] = 0,
    batch: Annotated[int, Parameter(help="Prompts at a time.")] = 32,
    quantize: Annotated[str | None, Parameter(help=QUANTIZE)] = None,
    device: Annotated[str, Parameter(help="auto, cuda, mps or cpu.")] = "auto",
) -> Shown:
    """Write on from a prompt."""
    prompts = [*(prompt or ()), *([text_of(file)] if file else ())]
    if not prompts:
        raise InputError(Problem("a prompt is needed", "--prompt", fix='--prompt "Once upon a time", or --file FILE'))
    import torch

    from featherweight.evaluate import generate

    loaded, _ = opened(adapter, model, "causallm" if adapter is None else None, device, quantize)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {}
    texts = generate(loaded, prompts, max_new_tokens=tokens, batch=batch, **options)
    answers = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    screen = [t if len(texts) == 1 else f"{p}\n  → {t}" for p, t in zip(prompts, texts, strict=True)]
    return Shown({"answers": answers}, tuple(screen))


def text_of(file: Path) -> str:
    """The prompt in a file, without the line end that editors add."""
    from featherweight.data.text import read_text

    if not file.is_file():
        raise InputError(Problem("no such file", f"--file {file}"))
    return read_text(file)[0].removesuffix("\n")
