"""`fw demo`: a real encoder, 1,000 real messages, one adapter, and what it was good for."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.demo_model import messages, model_folder
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem

MARK = "demo.json"
# Chosen by cross-validation over train and valid, within the time that a demo may take; test had no say.
TASK = {"pool": "mean"}  # what this encoder was trained to be read by
METHOD = {"rank": 16, "alpha": 32, "targets": "linear"}
SETTINGS = {"epochs": 6, "lr": 1e-3, "batch": 8, "length": 64, "seed": 0, "best": False}
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
    from featherweight.baselines.frozen import frozen
    from featherweight.evaluate import evaluate
    from featherweight.interop import load_model
    from featherweight.methods import LoRA
    from featherweight.tasks import Classification
    from featherweight.train.run import train

    splits = {name: read_split(data / f"{name}.jsonl") for name in ("train", "valid", "test")}
    with marked(output):
        untuned = evaluate(frozen(model, str(data)), str(data / "test.jsonl"))["accuracy"]
        run = train(str(model), str(data), Classification(**TASK), output=output, method=LoRA(**METHOD), **SETTINGS)  # type: ignore[arg-type]
        tuned = evaluate(load_model(output), str(data / "test.jsonl"))["accuracy"]
        found = {
            **{name: len(texts) for name, (texts, _) in splits.items()},
            "intents": len(set(splits["train"][1])), "frozen_accuracy": float(untuned), "tuned_accuracy": float(tuned),
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
    output, tests = found["output"], found["test"]
    return (
        table(found),
        f"chance     one message is {1 / tests:.1%}; another {tests} would move either accuracy by about "
        f"{deviation(found['tuned_accuracy'], tests):.1%}",
        f"trained    {found['trainable']:,} of {found['total']:,} parameters ({found['share']:.1%})",
        f"time       {found['seconds']:.0f} s for {found['train']} messages {SETTINGS['epochs']} times, "
        f"{found['tokens_per_second']:,.0f} tokens/s",
        f"adapter    {output}",
        "",
        "Try it on a sentence of your own, or look inside:",
        f'  fw predict --adapter {output} "{SENTENCE}"',
        f"  fw eval --adapter {output} --data {messages() / 'test.jsonl'}",
        f"  fw merge --adapter {output} --output {output}-merged",
    )


def table(found: dict[str, Any]) -> Any:
    """Both accuracies, over the same rows."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column(f"{found['test']} unseen messages, {found['intents']} intents")
    made.add_column("right", justify="right")
    made.add_column("accuracy", justify="right")
    rows = {"frozen embeddings + logistic regression": "frozen_accuracy", "tuned with LoRA": "tuned_accuracy"}
    for name, key in rows.items():
        made.add_row(name, f"{found[key] * found['test']:.0f}", f"{found[key]:.1%}")
    return made


def deviation(share: float, rows: int) -> float:
    """Standard deviation of a share that was counted over `rows` rows."""
    return float((share * (1 - share) / rows) ** 0.5)
