"""The two small models of this folder, made from nothing: `python models/pretrain.py bert` and `... t5`.

    tiny-bert   BERT: masked language modelling
    tiny-t5     T5: span corruption, then prompts of many tasks ("T0 in miniature", see mixture.py)

Everything is drawn from SEED; a run that was interrupted goes on where it stopped. Needs the development data
(FEATHERWEIGHT_DATA, else ../shared/data); each model takes about an hour of one core.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import shapes
import torch
from mixture import Mixture
from store import store
from texts import texts

import featherweight as fw
from featherweight.data.windows import windows

HERE = Path(__file__).resolve().parent
SEED = 0
LENGTH = 128
SHARED = {"seed": SEED, "warmup": 0.05, "best": False, "log": 50, "keep": 1, "eval_every": 250,
          "checkpoint_every": 250}  # fmt: skip
PHASES: dict[str, dict[str, dict[str, Any]]] = {
    "bert": {
        "texts": {"task": fw.MaskedLM(rate=0.25), "steps": 4300, "batch": 32, "lr": 1.5e-3, "decay": 0.01,
                  "length": LENGTH},
    },
    "t5": {
        "texts": {"task": fw.SpanCorruption(density=0.25), "steps": 1200, "batch": 32, "lr": 1e-2,
                  "optimizer": "adafactor", "decay": 0.01, "length": LENGTH},
        "prompts": {"task": fw.Seq2Seq(), "steps": 2000, "batch": 64, "lr": 1e-2, "optimizer": "adafactor",
                    "length": 192},
    },
}  # fmt: skip


def tokenizer_of(name: str, data: Path, folder: Path) -> shapes.Words:
    """The tokenizer of the training documents, made once."""
    if not folder.is_dir():
        documents = [t.replace("<unk>", "") for train, _ in texts(data).values() for t in train]
        {"bert": shapes.wordpiece, "t5": shapes.unigram}[name](documents).save_pretrained(folder)
    return shapes.Words.from_pretrained(folder)


def read(data: Path, tokenizer: shapes.Words) -> dict[str, list[dict[str, str]]]:
    """Windows of all sources; of the dev documents, at most 40 of each source."""
    found: dict[str, list[dict[str, str]]] = {"train": [], "valid": []}
    for train, dev in texts(data).values():
        found["train"] += [{"text": w} for w in windows(train, tokenizer, LENGTH)]
        found["valid"] += [{"text": w} for w in windows(dev, tokenizer, LENGTH)[:40]]
    unknown = str(tokenizer.unk_token)
    return {
        split: [{"text": row["text"].replace("<unk>", unknown)} for row in rows if len(row["text"]) > 40]
        for split, rows in found.items()
    }


def prompts(data: Path, tokenizer: shapes.Words) -> dict[str, list[dict[str, str]]]:
    """As many prompts as the phase reads, each seen once, and 512 of the dev rows."""
    count = PHASES["t5"]["prompts"]["steps"] * PHASES["t5"]["prompts"]["batch"]
    return {
        split: [{"prompt": item.prompt, "completion": item.answer} for item in Mixture(data, split).items(n, SEED)]
        for split, n in (("train", count), ("valid", 512))
    }


def phase(name: str, which: str, model: shapes.Model, tokenizer: shapes.Words, data: Path, work: Path) -> shapes.Model:
    """One pre-training of all weights from what they are; skipped where its model is there."""
    done = work / which / "model"
    if not (done / "config.json").is_file():
        settings = {**SHARED, **PHASES[name][which]}
        rows = (prompts if which == "prompts" else read)(data, tokenizer)
        print(f"{name}, {which}: {len(rows['train'])} rows, {model.num_parameters():,} parameters", flush=True)
        fw.train(model, rows, settings.pop("task"), output=work / which, method=fw.Full(), tokenizer=tokenizer,
                 resume=True, **settings)  # fmt: skip
        fw.merge(model).save_pretrained(done)
        tokenizer.save_pretrained(done)
    return shapes.load(done)[0]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", choices=tuple(PHASES))
    options.add_argument("--work", type=Path, default=HERE.parent / "out" / "pretrain")
    given = options.parse_args()
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")  # sums in one order: the same pieces again
    data = Path(os.environ.get("FEATHERWEIGHT_DATA") or HERE.parent.parent / "shared" / "data")
    work = given.work / given.model
    tokenizer = tokenizer_of(given.model, data, work / "tokenizer")
    torch.manual_seed(SEED)
    model = {"bert": shapes.bert, "t5": shapes.t5}[given.model](len(tokenizer))
    for which in PHASES[given.model]:
        model = phase(given.model, which, model, tokenizer, data, work)
    store(given.model, model, tokenizer, data, work, HERE / f"tiny-{given.model}")


if __name__ == "__main__":
    main()
