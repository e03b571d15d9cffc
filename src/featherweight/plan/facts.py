"""What a config and a data set say before any model is built: the task, the length of rows, what rows will do."""

from math import ceil
from typing import Any

from featherweight.core.errors import InputError, Problem
from featherweight.tasks import CausalLM, Classification, Seq2Seq, Task
from featherweight.train.settings import Settings

LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")


def task_of(config: Any) -> Task:
    """The task a config was made for: by its architectures, else by what its kind of model is trained for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    name = next(iter(config.architectures or ()), "")
    labels = tuple(str(v) for _, v in sorted((config.id2label or {}).items()))
    if name.endswith("ForSequenceClassification") or (not name.endswith("LM") and config.model_type in MASKED):
        return Seq2Seq() if config.is_encoder_decoder else Classification(labels=labels)
    return Seq2Seq() if config.is_encoder_decoder else CausalLM()


def length_of(config: Any, asked: int | None, default: int) -> int:
    """Tokens of a row. Raises InputError for more than the model has positions."""
    limit = next((int(v) for n in LIMITS if (v := getattr(config, n, None))), None)
    if config.is_encoder_decoder and config.model_type in ("t5", "mt5", "umt5"):
        limit = None  # relative positions: no limit
    if asked is not None and limit is not None and asked > limit:
        raise InputError(Problem("more tokens than the model has positions", "length", f"at most {limit:,}",
                                 f"{asked:,}", "shorten the rows, or plan another model"))  # fmt: skip
    return asked or min(default, limit or default)


def read(data: Any, columns: Any, task: Task | None) -> tuple[Task, list[Any]]:
    """The task as training would have it, with what the rows decide (labels), and the training rows."""
    from featherweight.data.load import load
    from featherweight.data.rows import examples
    from featherweight.tasks import task_for

    loaded = load(data, columns)
    rows = examples(loaded.train, loaded.shape)
    return (task or task_for(loaded.shape)).fit(rows), rows


def of_data(rows: list[Any], source: Any, task: Task, length: int, chosen: Settings) -> dict[str, Any]:
    """Rows, cut rows, tokens, units and steps of an epoch. Raises InputError where the source has no tokenizer."""
    from featherweight.interop.transformers import load_tokenizer
    from featherweight.train.feed import units

    tokenizer = getattr(source, "tokenizer", None) or load_tokenizer(source)
    items = task.encode_all(rows, tokenizer, length)
    sizes = [len(item.input_ids) for item in items]
    return {
        "rows": len(items), "cut_rows": sum(item.truncated > 0 for item in items),
        "cut_tokens": sum(item.truncated for item in items), "longest": max(sizes, default=0),
        "tokens_per_epoch": sum(sizes), "units_per_epoch": sum(units(item) for item in items),
        "steps_per_epoch": ceil(len(items) / chosen.batch),
    }  # fmt: skip


def notes(task: Task, chosen: Settings) -> tuple[str, ...]:
    """What the figures leave out or take for granted."""
    found = [
        "tensors only: the interpreter with torch and transformers is some 350 MB more, a CUDA context about 500 MB",
        f"all {chosen.batch} rows at full length in one piece; every position carries loss",
    ]
    if isinstance(task, Seq2Seq):
        found.append("the target is taken to be as long as the source")
    if chosen.accumulate > 1:
        found.append(f"accumulate={chosen.accumulate}: each micro-batch is that much smaller than what is shown")
    return tuple(found)
