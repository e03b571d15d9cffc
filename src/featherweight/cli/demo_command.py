"""`fw demo`: a real encoder, 1,000 real messages, one adapter, and what it was good for."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.demo_baseline import frozen_accuracy
from featherweight.cli.demo_model import messages, model_folder
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem

MARK = "demo.json"
# Chosen on the valid split alone, within the time that a demo may take.
METHOD = {"rank": 8, "alpha": 16, "targets": "linear"}
SETTINGS = {"epochs": 6, "lr": 1.5e-3, "batch": 8, "length": 64, "seed": 0}
SENTENCE = "My parcel was due on Monday and nobody can tell me where it is."


def command(
    *,
    output: Annotated[Path, Parameter(help="Folder of the adapter; an earlier demo there is replaced.")] = Path(
        "out/demo"
    ),
) -> Shown:
    """Fine-tune all-MiniLM-L6-v2 with LoRA on 1,000 support messages in 10 intents."""
    model, data = model_folder(), messages()
    clear(output)
    from featherweight.evaluate import evaluate
    from featherweight.interop import load_model
    from featherweight.methods import LoRA
    from featherweight.tasks import Classification
    from featherweight.train.run import train

    splits = {name: read_split(data / f"{name}.jsonl") for name in ("train", "valid", "test")}
    with marked(output):
        frozen = frozen_accuracy(model, splits)
        run = train(str(model), str(data), Classification(), output=output, method=LoRA(**METHOD), **SETTINGS)  # type: ignore[arg-type]
        tuned = evaluate(load_model(output), str(data / "test.jsonl"))["accuracy"]
        found = {
            "messages": sum(len(texts) for texts, _ in splits.values()), "test": len(splits["test"][0]),
            "intents": len(set(splits["train"][1])), "frozen_accuracy": frozen, "tuned_accuracy": float(tuned),
            "trainable": run.trainable, "total": run.total, "share": run.trainable / run.total,
            "seconds": run.seconds, "tokens_per_second": run.tokens_per_second, "output": str(output),
        }  # fmt: skip
        (output / MARK).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return Shown(found, screen(found))


def read_split(file: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of one bundled file."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def clear(output: Path) -> None:
    """Remove an earlier demo. Raises InputError for a folder that holds anything else."""
    if output.is_file():
        raise InputError(Problem("a file is there", str(output), fix="name another --output"))
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / MARK).is_file() and not beside(output).is_file():
        raise InputError(Problem("something that is not a demo is there", str(output), fix="name another --output"))
    shutil.rmtree(output)


def beside(output: Path) -> Path:
    """The mark of a demo under way: beside the folder, which must be empty when training starts."""
    return output.parent / f".{output.name}.demo"


@contextmanager
def marked(output: Path) -> Iterator[None]:
    """While this lasts the folder is known as a demo's; one that was interrupted can be replaced by the next."""
    mark = beside(output)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    yield
    mark.unlink()


def screen(found: dict[str, Any]) -> tuple[Any, ...]:
    """The result as a person reads it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"{found['test']} unseen messages, {found['intents']} intents")
    table.add_column("accuracy", justify="right")
    table.add_row("frozen embeddings + logistic regression", f"{found['frozen_accuracy']:.1%}")
    table.add_row("tuned with LoRA", f"{found['tuned_accuracy']:.1%}")
    return (
        table,
        f"trained    {found['trainable']:,} of {found['total']:,} parameters ({found['share']:.1%})",
        f"time       {found['seconds']:.0f} s, {found['tokens_per_second']:,.0f} tokens/s",
        f"adapter    {found['output']}",
        "",
        "Try it on a sentence of your own, or look inside:",
        f'  fw predict --adapter {found["output"]} "{SENTENCE}"',
        f"  fw eval --adapter {found['output']} --data {messages() / 'test.jsonl'}",
        f"  fw merge --adapter {found['output']} --output {found['output']}-merged",
    )
