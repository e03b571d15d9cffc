"""What a student saves: its size, its time beside the teacher's, and an epoch whose teacher is read from disk."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import _paired
import _real
import torch
from _distill import JOBS, LENGTH

import featherweight as fw
from featherweight.distill import KD, TinyBERT

BATCHES = (1, 8, 32)
CACHED = {"KD, 1 layer": (KD(), 1), "KD, 2 layers": (KD(), 2), "KD, 3 layers": (KD(), 3),
          "TinyBERT's layers, 3 layers": (TinyBERT("layers"), 3)}  # fmt: skip
EPOCH = 128  # rows


def sizes(model: Any) -> dict[str, int]:
    """Parameters in all and in the embeddings, and the bytes of the saved model."""
    embedded = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    held = {id(p): p.numel() for p in model.parameters()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    return {"parameters": sum(held.values()), "embeddings": sum(held[i] for i in embedded), "bytes": size}


def speed(rounds: int) -> dict[str, Any]:
    """Of each job: sizes of teacher and student, and how many times as fast the student is, at some batch sizes."""
    found: dict[str, Any] = {}
    for job in JOBS[:2]:  # the third has the first's shape
        model = (
            _real.writer("stories", 0)[0] if job.words else _real.classifier(job.data, 0)[0]
        )  # weights are no matter
        pair = {"teacher": model.eval(), "student": job.student(model)}
        cell: dict[str, Any] = {name: sizes(m) for name, m in pair.items()}
        cell["smaller"] = round(1 - cell["student"]["bytes"] / cell["teacher"]["bytes"], 4)
        texts = [next(iter(row.values())) for row in job.data["test"]]
        for size in BATCHES:
            given = model.tokenizer(texts[:size], padding=size > 1, truncation=True, max_length=LENGTH,
                                    return_tensors="pt")  # fmt: skip
            given = {k: given[k] for k in ("input_ids", "attention_mask")}
            times = _paired.paired({name: forward(m, given) for name, m in pair.items()}, rounds)
            cell[f"batch {size}"] = _paired.compare(times, "teacher") | {"tokens": given["input_ids"].numel()}
        found[job.name] = cell
        print(job.name, cell, flush=True)
    return found


def forward(model: Any, given: Any) -> Any:
    @torch.no_grad()
    def call() -> None:
        model(**given)

    return call


def cached_epochs(repeats: int) -> dict[str, Any]:
    """Seconds of the loop for an epoch over 128 rows of banking77, without a cache and with one that an epoch before
    filled: a second epoch. The two take turns. Times of the first, which fills it, are beside.

    A step forward and back costs thrice a step forward, so at best the second is 1 + N / (3 M) times as fast for a
    student of M of N layers: 3, 2 and 1.67 for 1, 2 and 3 of 6."""
    job = JOBS[0]
    model = _real.classifier(job.data, 0)[0].eval()
    rows, found = {"train": _real.chosen(job.data["train"], EPOCH)}, {}
    for name, (recipe, layers) in CACHED.items():
        with tempfile.TemporaryDirectory() as folder:

            def epoch(where: Any, seed: int, recipe: Any = recipe, layers: int = layers) -> float:
                made = fw.student(model, layers=layers)
                run = fw.distill(made, model, rows, recipe, job.task, method=job.method, epochs=1, batch=16, lr=1e-4,
                                 length=LENGTH, seed=seed, best=False, cache=where)  # fmt: skip
                return run.seconds

            times: dict[str, list[float]] = {"first": [epoch(folder, 0)], "without": [], "second": []}
            for seed in range(1, repeats + 1):
                for kind, where in (("without", None), ("second", folder))[:: 1 if seed % 2 else -1]:
                    times[kind].append(epoch(where, seed))
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        ratios = [a / b for a, b in zip(times["without"], times["second"], strict=True)]
        found[name] = {f"{k}_s": round(statistics.median(t), 3) for k, t in times.items()}
        found[name] |= {"times_as_fast": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in ratios],
                        "bytes_a_row": size // EPOCH}  # fmt: skip
        print(name, found[name], flush=True)
    return found
