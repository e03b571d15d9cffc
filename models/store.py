"""What is left of a pre-training: the model in 16 bits, its record (record.json) and its card (README.md).

Bits per token are of what was hidden in dev documents; the baseline beside them knows only how often each token is
hidden in the training documents (a unigram model, add-one smoothed).
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import shapes
import torch
from card import card
from mixture import Item, Mixture
from texts import SOURCES, texts

import featherweight as fw
from featherweight.data.collate import collate
from featherweight.data.rows import examples
from featherweight.data.shape import Shape
from featherweight.data.types import Row
from featherweight.data.windows import windows

HERE = Path(__file__).resolve().parent
LIMIT = 8_000_000  # bytes of weights
Figures = dict[str, Any]


def store(name: str, model: shapes.Model, tokenizer: shapes.Words, data: Path, work: Path, folder: Path) -> None:
    """Write the folder of a model. Raises ValueError where its weights take more than LIMIT."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write(folder / "config.json", config | {"dtype": "float32"})  # what it loads as
    weights = (folder / "model.safetensors").read_bytes()
    if len(weights) > LIMIT:
        raise ValueError(f"{folder.name}: {len(weights):,} bytes of weights, at most {LIMIT:,}")
    loaded, read = shapes.load(folder)[0].eval(), texts(data)
    record = {
        "name": folder.name,
        "parameters": loaded.num_parameters(),
        "bytes": len(weights),
        "sha256": sha256(weights).hexdigest(),
        "phases": {p.name: curve(p) for p in sorted(work.iterdir(), reverse=True) if (p / "metrics.jsonl").is_file()},
        "sources": {s.name: [s.licence, *map(len, read[s.name])] for s in SOURCES},
        "figures": {"bert": of_bert, "t5": of_t5}[name](loaded, tokenizer, data),
    }
    write(folder / "record.json", record)
    words = {"bert": "card_bert.md", "t5": "card_t5.md"}[name]
    (folder / "README.md").write_text(card((HERE / words).read_text(encoding="utf-8"), record), encoding="utf-8")


def write(path: Path, form: Any) -> None:
    path.write_text(json.dumps(form, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def curve(folder: Path) -> Figures:
    """The settings of a phase, its training loss at about ten points, its dev loss wherever it was evaluated."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [(x["step"], round(x["loss"], 4), x["tokens"]) for x in lines if "loss" in x]
    return {
        "steps": losses[-1][0],
        "tokens": losses[-1][2],
        "seconds": round(max(x["time"]["seconds"] for x in lines)),
        "train": [point[:2] for point in losses[:: max(1, len(losses) // 10)]],
        "dev": [[x["step"], round(x["dev"]["loss"], 4)] for x in lines if "dev" in x],
    }


def of_bert(model: shapes.Model, tokenizer: shapes.Words, data: Path) -> Figures:
    """By source: bits per hidden token, beside the unigram's, and the share of hidden tokens that is found."""
    task, found = fw.MaskedLM(), {}
    common = counts(task, model, tokenizer, data)
    for name, (_, dev) in texts(data).items():
        rows = pieces(dev, tokenizer)
        scores = fw.evaluate(model, rows, task, tokenizer=tokenizer)
        found[name] = {
            "bits": round(float(scores["loss"]) / math.log(2), 3),
            "unigram_bits": round(surprise(hidden(task, model, rows, tokenizer), common), 3),
            "accuracy": round(scores["masked_accuracy"], 4),
            "unigram_accuracy": round(common_share(hidden(task, model, rows, tokenizer), common), 4),
        }
    return {"hidden_tokens": found}


def of_t5(model: shapes.Model, tokenizer: shapes.Words, data: Path) -> Figures:
    """Spans by source; of the mixture's dev prompts the accuracy by rank beside chance, and what it writes."""
    task, spans = fw.SpanCorruption(), {}
    common = counts(task, model, tokenizer, data)
    for name, (_, dev) in texts(data).items():
        rows = pieces(dev, tokenizer)
        spans[name] = {
            "bits": round(float(fw.evaluate(model, rows, task, tokenizer=tokenizer)["loss"]) / math.log(2), 3),
            "unigram_bits": round(surprise(hidden(task, model, rows, tokenizer), common), 3),
        }
    asked: dict[str, list[Item]] = {}
    for item in Mixture(data, "valid").items(2000, 1):
        asked.setdefault(item.task, []).append(item)
    metrics = {"place": "exact", "details": "exact", "describe": "bleu"}
    shown = [asked[name][0].prompt for name in ("describe", "place", "solve", "instruct")]
    return {
        "spans": spans,
        "ranked": {name: by_rank(model, tokenizer, items) for name, items in sorted(asked.items()) if items[0].choices},
        "written": {name: generated(model, tokenizer, asked[name][:60], metric) for name, metric in metrics.items()},
        "samples": [[prompt, text_of(model, tokenizer, prompt)] for prompt in shown],
    }


def pieces(dev: Sequence[str], tokenizer: shapes.Words) -> list[dict[str, str]]:
    cut = windows(dev, tokenizer, 128)[:40]
    return [{"text": w.replace("<unk>", str(tokenizer.unk_token))} for w in cut if len(w) > 40]


def hidden(task: Any, model: shapes.Model, rows: Sequence[dict[str, str]], tokenizer: shapes.Words) -> list[int]:
    """The ids that the task asks for, of rows in eval mode."""
    found = []
    shaped = examples([Row(row, f"row {i}") for i, row in enumerate(rows)], Shape("text", {"text": "text"}))
    for row in task.encode_all(shaped, tokenizer, 128):
        targets = task.pose(model, collate([row], tokenizer.pad_token_id).tensors)[-1]
        found += targets[targets >= 0].tolist()
    return found


def counts(task: Any, model: shapes.Model, tokenizer: shapes.Words, data: Path) -> Counter[int]:
    """How often each token is hidden in training documents, all of the vocabulary counted once more."""
    rows = [row for train, _ in texts(data).values() for row in pieces(train[::4], tokenizer)]
    return Counter(hidden(task, model, rows, tokenizer)) + Counter(range(len(tokenizer)))


def surprise(ids: Iterable[int], counted: Counter[int]) -> float:
    """Mean bits of the ids under the counts."""
    ids, total = list(ids), counted.total()
    return -sum(math.log2(counted[i] / total) for i in ids) / len(ids)


def common_share(ids: Sequence[int], counted: Counter[int]) -> float:
    return sum(i == counted.most_common(1)[0][0] for i in ids) / len(ids)


def by_rank(model: shapes.Model, tokenizer: shapes.Words, items: Sequence[Item]) -> Figures:
    rows = [{"text": i.prompt, "choices": list(i.choices), "label": i.choices.index(i.answer)} for i in items]
    scores = fw.evaluate(model, rows, fw.Seq2SeqChoices(), tokenizer=tokenizer)
    most = Counter(i.answer for i in items).most_common(1)[0][1] / len(items)
    return {
        "rows": len(rows),
        "accuracy": round(scores["accuracy"], 4),
        "chance": round(sum(1 / len(i.choices) for i in items) / len(items), 4),
        "commonest": round(most, 4),
    }


def generated(model: shapes.Model, tokenizer: shapes.Words, items: Sequence[Item], metric: str) -> Figures:
    rows = [{"prompt": i.prompt, "completion": i.answer} for i in items]
    scores = fw.evaluate(model, rows, fw.Seq2Seq(max_new_tokens=64), tokenizer=tokenizer, metrics=("loss", metric))
    return {"rows": len(rows), **{k: round(v, 4) for k, v in scores.values.items()}}


def text_of(model: shapes.Model, tokenizer: shapes.Words, prompt: str) -> str:
    with torch.no_grad():
        made = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=60, do_sample=False)
    return str(tokenizer.decode(made[0], skip_special_tokens=True))
